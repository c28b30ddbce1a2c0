//! Functions and statements.

use super::expressions::{Body, name};
use super::{Refused, Writer};
use naga::valid::FunctionInfo;
use naga::{
    AtomicFunction, Block, CollectiveOperation, Expression, Function, Handle, Statement, SubgroupOperation, SwitchCase,
    SwitchValue, TypeInner,
};
use std::collections::HashSet;

impl<'a> Writer<'a> {
    /// A function as a method of the module's class.
    pub(super) fn function(
        &mut self,
        function: &'a Function,
        info: &'a FunctionInfo,
        name: &str,
    ) -> Result<(), Refused> {
        let mut body = Body { function, info, named: HashSet::new() };
        self.head(function, name)?;
        self.indent += 1;
        for (handle, variable) in function.local_variables.iter() {
            let ty = self.ty(variable.ty)?;
            let init = match variable.init {
                Some(init) => format!(" = {}", self.expression(&body, init)?),
                None => "{}".to_owned(),
            };
            self.line(&format!("{ty} l{}{init};", handle.index()));
        }
        let mut labels = Labels::default();
        self.block(&mut body, &function.body, &mut labels)?;
        self.indent -= 1;
        self.line("}");
        Ok(())
    }

    /// A function whose body is given.
    pub(super) fn native(&mut self, function: &Function, name: &str, body: &str) -> Result<(), Refused> {
        self.head(function, name)?;
        self.indent += 1;
        body.lines().for_each(|line| self.line(line.trim_start()));
        self.indent -= 1;
        self.line("}");
        Ok(())
    }

    /// The line that a function begins with.
    fn head(&mut self, function: &Function, name: &str) -> Result<(), Refused> {
        let result = function.result.as_ref().map_or(Ok("void".to_owned()), |result| self.ty(result.ty))?;
        let mut arguments = Vec::with_capacity(function.arguments.len());
        for (number, argument) in function.arguments.iter().enumerate() {
            arguments.push(format!("{} a{number}", self.ty(argument.ty)?));
        }
        self.line(&format!("FN {result} {name}({}) {{", arguments.join(", ")));
        Ok(())
    }

    fn block(&mut self, body: &mut Body<'_>, block: &Block, labels: &mut Labels) -> Result<(), Refused> {
        block.iter().try_for_each(|statement| self.statement(body, statement, labels))
    }

    /// A block in braces.
    fn braces(&mut self, body: &mut Body<'_>, block: &Block, labels: &mut Labels) -> Result<(), Refused> {
        self.line("{");
        self.indent += 1;
        self.block(body, block, labels)?;
        self.indent -= 1;
        self.line("}");
        Ok(())
    }

    /// Names the value of an expression that a statement made.
    fn result(&mut self, body: &mut Body<'_>, result: Handle<Expression>, value: &str) -> Result<(), Refused> {
        let ty = self.resolved(&body.info[result].ty)?;
        body.named.insert(result);
        self.line(&format!("const {ty} {} = {value};", name(result)));
        Ok(())
    }

    /// A call, whose result gets a name if it has one.
    fn call(&mut self, body: &mut Body<'_>, result: Option<Handle<Expression>>, call: &str) -> Result<(), Refused> {
        match result {
            Some(result) => self.result(body, result, call)?,
            None => self.line(&format!("{call};")),
        }
        Ok(())
    }

    fn statement(&mut self, body: &mut Body<'_>, statement: &Statement, labels: &mut Labels) -> Result<(), Refused> {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    if !self.is_place(body, handle) {
                        let value = self.expression(body, handle)?;
                        self.result(body, handle, &value)?;
                    }
                }
            }
            Statement::Block(block) => self.braces(body, block, labels)?,
            Statement::If { condition, accept, reject } => {
                let condition = self.expression(body, *condition)?;
                self.line(&format!("if ({condition})"));
                self.braces(body, accept, labels)?;
                if !reject.is_empty() {
                    self.line("else");
                    self.braces(body, reject, labels)?;
                }
            }
            Statement::Switch { selector, cases } => self.switch(body, *selector, cases, labels)?,
            Statement::Loop { body: inside, continuing, break_if } => {
                self.repeat(body, [inside, continuing], *break_if, labels)?;
            }
            Statement::Break => self.line("break;"),
            Statement::Continue => {
                let label = labels.innermost()?;
                self.line(&format!("goto {label};"));
            }
            Statement::Return { value: None } => self.line("return;"),
            Statement::Return { value: Some(value) } => {
                let value = self.expression(body, *value)?;
                self.line(&format!("return {value};"));
            }
            // a barrier of a block orders its threads' accesses to all memory
            Statement::ControlBarrier(_) => self.line("__syncthreads();"),
            Statement::MemoryBarrier(_) => self.line("__threadfence();"),
            Statement::Store { pointer, value } => {
                let (place, value) = (self.expression(body, *pointer)?, self.expression(body, *value)?);
                match self.pointee(body, *pointer) {
                    TypeInner::Atomic(_) => self.line(&format!("atomic_write({place}, {value});")),
                    _ => self.line(&format!("{place} = {value};")),
                }
            }
            Statement::Call { function, arguments, result } => {
                let arguments = arguments.iter().map(|argument| self.expression(body, *argument));
                let arguments = arguments.collect::<Result<Vec<_>, _>>()?.join(", ");
                self.call(body, *result, &format!("{}({arguments})", self.function_name(*function)))?;
            }
            Statement::Atomic { pointer, fun, value, result } => {
                let (place, value) = (self.expression(body, *pointer)?, self.expression(body, *value)?);
                self.call(body, *result, &format!("{}(&{place}, {value})", atomic(fun)?))?;
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                let place = self.expression(body, *pointer)?;
                self.line("__syncthreads();");
                self.result(body, *result, &place)?;
                self.line("__syncthreads();");
            }
            Statement::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                let argument = self.expression(body, *argument)?;
                self.result(body, *result, &format!("{}({argument})", collective(*op, *collective_op)?))?;
            }
            other => return Err(format!("it has a statement {other:?}")),
        }
        Ok(())
    }

    fn switch(
        &mut self,
        body: &mut Body<'_>,
        selector: Handle<Expression>,
        cases: &[SwitchCase],
        labels: &mut Labels,
    ) -> Result<(), Refused> {
        let selector = self.expression(body, selector)?;
        self.line(&format!("switch ({selector}) {{"));
        for case in cases {
            match case.value {
                SwitchValue::I32(value) => self.line(&format!("case {value}:")),
                SwitchValue::U32(value) => self.line(&format!("case {value}u:")),
                SwitchValue::Default => self.line("default:"),
            }
            self.braces(body, &case.body, labels)?;
            if !case.fall_through {
                self.line("break;");
            }
        }
        self.line("}");
        Ok(())
    }

    /// A loop. `continue` jumps behind the body's braces, to what every round ends with.
    fn repeat(
        &mut self,
        body: &mut Body<'_>,
        [inside, continuing]: [&Block; 2],
        break_if: Option<Handle<Expression>>,
        labels: &mut Labels,
    ) -> Result<(), Refused> {
        let label = labels.enter();
        self.line("for (;;) {");
        self.indent += 1;
        self.braces(body, inside, labels)?;
        if labels.leave() {
            self.line(&format!("{label}:;"));
        }
        self.block(body, continuing, labels)?;
        if let Some(condition) = break_if {
            let condition = self.expression(body, condition)?;
            self.line(&format!("if ({condition}) break;"));
        }
        self.indent -= 1;
        self.line("}");
        Ok(())
    }
}

/// The labels of the loops around a statement, and whether something jumps to each.
#[derive(Default)]
struct Labels {
    count: usize,
    open: Vec<(String, bool)>,
}

impl Labels {
    fn enter(&mut self) -> String {
        self.count += 1;
        let label = format!("next{}", self.count);
        self.open.push((label.clone(), false));
        label
    }

    fn innermost(&mut self) -> Result<String, Refused> {
        let (label, used) = self.open.last_mut().ok_or("it continues outside of a loop")?;
        *used = true;
        Ok(label.clone())
    }

    /// Closes the innermost loop; whether something jumped to its label.
    fn leave(&mut self) -> bool {
        self.open.pop().is_some_and(|(_, used)| used)
    }
}

fn atomic(function: &AtomicFunction) -> Result<&'static str, Refused> {
    Ok(match function {
        AtomicFunction::Add => "atomicAdd",
        AtomicFunction::Subtract => "atomicSub",
        AtomicFunction::And => "atomicAnd",
        AtomicFunction::ExclusiveOr => "atomicXor",
        AtomicFunction::InclusiveOr => "atomicOr",
        AtomicFunction::Min => "atomicMin",
        AtomicFunction::Max => "atomicMax",
        AtomicFunction::Exchange { compare: None } => "atomicExch",
        AtomicFunction::Exchange { compare: Some(_) } => {
            return Err("it exchanges atomic memory under a condition".to_owned());
        }
    })
}

fn collective(op: SubgroupOperation, over: CollectiveOperation) -> Result<&'static str, Refused> {
    match (op, over) {
        (SubgroupOperation::Add, CollectiveOperation::Reduce) => Ok("warp_add"),
        (SubgroupOperation::Max, CollectiveOperation::Reduce) => Ok("warp_max"),
        (SubgroupOperation::Min, CollectiveOperation::Reduce) => Ok("warp_min"),
        other => Err(format!("it has an operation of subgroups {other:?}")),
    }
}
