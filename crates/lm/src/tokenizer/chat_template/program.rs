//! A template as the evaluator runs it: owned, with its depth checked.

use super::budget::{DEPTH, Result};
use minijinja::machinery::ast::{self, BinOpKind, CompareOpKind, UnaryOpKind};
use minijinja::value::ValueKind;
use std::collections::HashMap;

/// The place of a name in [`Program::names`].
pub(super) type Name = u32;

/// A template.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) body: Vec<Stmt>,
    pub(super) names: Vec<String>,
    pub(super) constants: Vec<Constant>,
    pub(super) macros: Vec<Macro>,
    pub(super) loops: Vec<For>,
}

/// A constant of a template.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
}

/// A macro, or the block of a `{% call %}`.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: String,
    pub(super) parameters: Vec<Name>,
    /// Of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Stmt>,
}

/// A statement and its line.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) line: u16,
    pub(super) kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Raw(String),
    Emit(Expr),
    /// A loop, by its place in [`Program::loops`].
    For(usize),
    If(Expr, Vec<Stmt>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Set(Target, Expr),
    /// Sets what a body writes, passed through a filter if there is one.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    FilterBlock(Expr, Vec<Stmt>),
    Scope(Vec<Stmt>),
    Macro(Name, usize),
    /// A call with a macro as `caller`.
    CallBlock(Expr, usize),
    Do(Expr),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) iter: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) is_recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    Attribute(Expr, String),
    Several(Vec<Target>),
}

#[derive(Debug)]
pub(super) enum Expr {
    Var(Name),
    Const(usize),
    Slice(Box<[Option<Expr>; 4]>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Binary(BinOpKind, Box<[Expr; 2]>),
    Compare(Box<Expr>, Vec<(CompareOpKind, Expr)>),
    If(Box<[Option<Expr>; 3]>),
    Filter(String, Option<Box<Expr>>, Vec<Arg>),
    Test(String, Box<Expr>, Vec<Arg>),
    Attribute(Box<Expr>, String),
    Item(Box<[Expr; 2]>),
    Call(Box<Expr>, Vec<Arg>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Map(Vec<[Expr; 2]>),
}

#[derive(Debug)]
pub(super) enum Arg {
    Positional(Expr),
    Keyword(String, Expr),
}

/// Makes a [`Program`] of a syntax tree.
#[derive(Default)]
pub(super) struct Compiler<'a> {
    program: Program,
    names: HashMap<&'a str, Name>,
    depth: usize,
}

impl<'a> Compiler<'a> {
    /// # Errors
    /// When it is nested too deeply or uses a feature that needs other templates.
    pub(super) fn compile(tree: &ast::Stmt<'a>) -> Result<Program> {
        let mut compiler = Compiler::default();
        let ast::Stmt::Template(template) = tree else { return Err("it is not a template".to_owned()) };
        let body = compiler.body(&template.children)?;
        Ok(Program { body, ..compiler.program })
    }

    fn name(&mut self, name: &'a str) -> Name {
        let names = &mut self.program.names;
        *self.names.entry(name).or_insert_with(|| {
            names.push(name.to_owned());
            names.len() as Name - 1
        })
    }

    fn deeper<T>(&mut self, line: u16, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH {
            return Err(format!("line {line} is nested more than {DEPTH} deep"));
        }
        self.depth += 1;
        let result = part(self);
        self.depth -= 1;
        result
    }

    fn body(&mut self, body: &[ast::Stmt<'a>]) -> Result<Vec<Stmt>> {
        body.iter().map(|stmt| self.deeper(0, |c| c.stmt(stmt))).collect()
    }

    fn stmt(&mut self, stmt: &ast::Stmt<'a>) -> Result<Stmt> {
        let at = |line: u16, kind: StmtKind| Ok(Stmt { line, kind });
        match stmt {
            ast::Stmt::Template(s) => at(s.span().start_line, StmtKind::Scope(self.body(&s.children)?)),
            ast::Stmt::EmitRaw(s) => at(s.span().start_line, StmtKind::Raw(s.raw.to_owned())),
            ast::Stmt::EmitExpr(s) => at(s.span().start_line, StmtKind::Emit(self.expr(&s.expr)?)),
            ast::Stmt::ForLoop(s) => {
                let part = For {
                    target: self.target(&s.target)?,
                    iter: self.expr(&s.iter)?,
                    filter: s.filter_expr.as_ref().map(|e| self.expr(e)).transpose()?,
                    is_recursive: s.recursive,
                    body: self.body(&s.body)?,
                    otherwise: self.body(&s.else_body)?,
                };
                self.program.loops.push(part);
                at(s.span().start_line, StmtKind::For(self.program.loops.len() - 1))
            }
            ast::Stmt::IfCond(s) => {
                let kind = StmtKind::If(self.expr(&s.expr)?, self.body(&s.true_body)?, self.body(&s.false_body)?);
                at(s.span().start_line, kind)
            }
            ast::Stmt::WithBlock(s) => {
                let set = |(target, value): &(_, _)| Ok((self.target(target)?, self.expr(value)?));
                let assignments = s.assignments.iter().map(set).collect::<Result<_>>()?;
                at(s.span().start_line, StmtKind::With(assignments, self.body(&s.body)?))
            }
            ast::Stmt::Set(s) => at(s.span().start_line, StmtKind::Set(self.target(&s.target)?, self.expr(&s.expr)?)),
            ast::Stmt::SetBlock(s) => {
                let filter = s.filter.as_ref().map(|e| self.expr(e)).transpose()?;
                at(s.span().start_line, StmtKind::SetBlock(self.target(&s.target)?, filter, self.body(&s.body)?))
            }
            ast::Stmt::FilterBlock(s) => {
                at(s.span().start_line, StmtKind::FilterBlock(self.expr(&s.filter)?, self.body(&s.body)?))
            }
            ast::Stmt::AutoEscape(s) => at(s.span().start_line, StmtKind::Scope(self.body(&s.body)?)),
            ast::Stmt::Macro(s) => {
                let name = self.name(s.name);
                at(s.span().start_line, StmtKind::Macro(name, self.declare(s)?))
            }
            ast::Stmt::CallBlock(s) => {
                let index = self.declare(&s.macro_decl)?;
                let call = self.call(&s.call)?;
                at(s.span().start_line, StmtKind::CallBlock(call, index))
            }
            ast::Stmt::Do(s) => at(s.span().start_line, StmtKind::Do(self.call(&s.call)?)),
            ast::Stmt::Break(s) => at(s.span().start_line, StmtKind::Break),
            ast::Stmt::Continue(s) => at(s.span().start_line, StmtKind::Continue),
        }
    }

    fn declare(&mut self, decl: &ast::Macro<'a>) -> Result<usize> {
        let parameter = |c: &mut Self, e: &ast::Expr<'a>| match e {
            ast::Expr::Var(var) => Ok(c.name(var.id)),
            _ => Err("a parameter of a macro is not a name".to_owned()),
        };
        let parameters = decl.args.iter().map(|e| parameter(self, e)).collect::<Result<_>>()?;
        let defaults = decl.defaults.iter().map(|e| self.expr(e)).collect::<Result<_>>()?;
        let body = self.body(&decl.body)?;
        self.program.macros.push(Macro { name: decl.name.to_owned(), parameters, defaults, body });
        Ok(self.program.macros.len() - 1)
    }

    fn target(&mut self, target: &ast::Expr<'a>) -> Result<Target> {
        self.deeper(target.span().start_line, |c| match target {
            ast::Expr::Var(var) => Ok(Target::Name(c.name(var.id))),
            ast::Expr::GetAttr(of) => Ok(Target::Attribute(c.expr(&of.expr)?, of.name.to_owned())),
            ast::Expr::List(list) => list.items.iter().map(|e| c.target(e)).collect::<Result<_>>().map(Target::Several),
            ast::Expr::Tuple(list) => {
                list.items.iter().map(|e| c.target(e)).collect::<Result<_>>().map(Target::Several)
            }
            other => Err(format!("line {}: this cannot be assigned to", other.span().start_line)),
        })
    }

    fn call(&mut self, call: &ast::Call<'a>) -> Result<Expr> {
        Ok(Expr::Call(Box::new(self.expr(&call.expr)?), self.args(&call.args)?))
    }

    fn args(&mut self, args: &[ast::CallArg<'a>]) -> Result<Vec<Arg>> {
        let arg = |arg: &ast::CallArg<'a>| match arg {
            ast::CallArg::Pos(e) => self.expr(e).map(Arg::Positional),
            ast::CallArg::Kwarg(name, e) => Ok(Arg::Keyword((*name).to_owned(), self.expr(e)?)),
            _ => Err("`*args` and `**kwargs` in calls are not supported".to_owned()),
        };
        args.iter().map(arg).collect()
    }

    fn exprs(&mut self, items: &[ast::Expr<'a>]) -> Result<Vec<Expr>> {
        items.iter().map(|e| self.expr(e)).collect()
    }

    fn expr(&mut self, expr: &ast::Expr<'a>) -> Result<Expr> {
        self.deeper(expr.span().start_line, |c| c.shallow(expr))
    }

    fn boxed(&mut self, expr: &ast::Expr<'a>) -> Result<Box<Expr>> {
        self.expr(expr).map(Box::new)
    }

    fn shallow(&mut self, expr: &ast::Expr<'a>) -> Result<Expr> {
        let mut maybe = |e: &Option<ast::Expr<'a>>| e.as_ref().map(|e| self.expr(e)).transpose();
        Ok(match expr {
            ast::Expr::Slice(e) => {
                let [start, stop, step] = [maybe(&e.start)?, maybe(&e.stop)?, maybe(&e.step)?];
                Expr::Slice(Box::new([Some(self.expr(&e.expr)?), start, stop, step]))
            }
            ast::Expr::IfExpr(e) => {
                let otherwise = maybe(&e.false_expr)?;
                Expr::If(Box::new([Some(self.expr(&e.test_expr)?), Some(self.expr(&e.true_expr)?), otherwise]))
            }
            ast::Expr::Var(e) => Expr::Var(self.name(e.id)),
            ast::Expr::Const(e) => {
                self.program.constants.push(constant(&e.value)?);
                Expr::Const(self.program.constants.len() - 1)
            }
            ast::Expr::UnaryOp(e) => match e.op {
                UnaryOpKind::Not => Expr::Not(self.boxed(&e.expr)?),
                UnaryOpKind::Neg => Expr::Neg(self.boxed(&e.expr)?),
            },
            ast::Expr::BinOp(e) => Expr::Binary(e.op, Box::new([self.expr(&e.left)?, self.expr(&e.right)?])),
            ast::Expr::Compare(e) => {
                let first = self.boxed(&e.expr)?;
                let rest = e.ops.iter().map(|op| Ok((op.op, self.expr(&op.expr)?))).collect::<Result<_>>()?;
                Expr::Compare(first, rest)
            }
            ast::Expr::Filter(e) => {
                let of = e.expr.as_ref().map(|of| self.boxed(of)).transpose()?;
                Expr::Filter(e.name.to_owned(), of, self.args(&e.args)?)
            }
            ast::Expr::Test(e) => Expr::Test(e.name.to_owned(), self.boxed(&e.expr)?, self.args(&e.args)?),
            ast::Expr::GetAttr(e) => Expr::Attribute(self.boxed(&e.expr)?, e.name.to_owned()),
            ast::Expr::GetItem(e) => Expr::Item(Box::new([self.expr(&e.expr)?, self.expr(&e.subscript_expr)?])),
            ast::Expr::Call(e) => self.call(e)?,
            ast::Expr::List(e) => Expr::List(self.exprs(&e.items)?),
            ast::Expr::Tuple(e) => Expr::Tuple(self.exprs(&e.items)?),
            ast::Expr::Map(e) => {
                let entry = |(k, v): (&ast::Expr<'a>, &ast::Expr<'a>)| Ok([self.expr(k)?, self.expr(v)?]);
                Expr::Map(e.keys.iter().zip(&e.values).map(entry).collect::<Result<_>>()?)
            }
        })
    }
}

fn constant(value: &minijinja::Value) -> Result<Constant> {
    Ok(match value.kind() {
        ValueKind::Undefined => Constant::Undefined,
        ValueKind::None => Constant::None,
        ValueKind::Bool => Constant::Bool(value.is_true()),
        ValueKind::Number => match (value.is_integer(), i128::try_from(value.clone())) {
            (true, Ok(n)) => Constant::Int(n),
            _ => Constant::Float(f64::try_from(value.clone()).map_err(|e| e.to_string())?),
        },
        ValueKind::String => Constant::Str(value.as_str().unwrap_or_default().to_owned()),
        other => return Err(format!("a constant of type {other} is not supported")),
    })
}
