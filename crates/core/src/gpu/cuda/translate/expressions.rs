//! Expressions.

use super::types::{field, kind_name, literal};
use super::{Refused, Writer};
use naga::valid::FunctionInfo;
use naga::{
    BinaryOperator, Expression, Function, Handle, RelationalFunction, SwizzleComponent, TypeInner, UnaryOperator,
};
use std::collections::HashSet;

/// A function, and those of its expressions that have a name already.
pub(super) struct Body<'a> {
    pub(super) function: &'a Function,
    pub(super) info: &'a FunctionInfo,
    pub(super) named: HashSet<Handle<Expression>>,
}

/// The name of an expression.
pub(super) fn name(handle: Handle<Expression>) -> String {
    format!("e{}", handle.index())
}

impl Writer<'_> {
    /// The type of an expression, behind its pointer if it is one.
    pub(super) fn pointee<'b>(&'b self, body: &'b Body<'_>, handle: Handle<Expression>) -> &'b TypeInner {
        let inner = body.info[handle].ty.inner_with(&self.module.types);
        match inner {
            TypeInner::Pointer { base, .. } => &self.module.types[*base].inner,
            other => other,
        }
    }

    /// Whether an expression names memory instead of a value.
    pub(super) fn is_place(&self, body: &Body<'_>, handle: Handle<Expression>) -> bool {
        let inner = body.info[handle].ty.inner_with(&self.module.types);
        matches!(inner, TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. })
    }

    /// The text of an expression: its name, if it has one.
    pub(super) fn expression(&self, body: &Body<'_>, handle: Handle<Expression>) -> Result<String, Refused> {
        if body.named.contains(&handle) {
            return Ok(name(handle));
        }
        let of = |handle| self.expression(body, handle);
        Ok(match &body.function.expressions[handle] {
            Expression::Literal(value) => literal(*value)?,
            Expression::Constant(constant) => self.constant(self.module.constants[*constant].init)?,
            Expression::ZeroValue(ty) => format!("{}{{}}", self.ty(*ty)?),
            Expression::Compose { ty, components } => {
                let parts: Result<Vec<_>, _> = components.iter().map(|part| of(*part)).collect();
                self.composed(*ty, &parts?)?
            }
            Expression::Access { base, index } => self.element(body, *base, &of(*index)?)?,
            Expression::AccessIndex { base, index } => self.member_of(body, *base, *index)?,
            Expression::Splat { size, value } => format!("splat<{}>({})", *size as u32, of(*value)?),
            Expression::Swizzle { size, vector, pattern } => {
                let vector_text = of(*vector)?;
                let parts: Vec<_> =
                    pattern[..*size as usize].iter().map(|c| format!("{vector_text}.{}", letter(*c))).collect();
                let TypeInner::Vector { scalar, .. } = self.pointee(body, *vector) else {
                    return Err("it swizzles what is no vector".to_owned());
                };
                format!("make<{}, {}>({})", kind_name(scalar.kind, scalar.width)?, *size as u32, parts.join(", "))
            }
            Expression::FunctionArgument(number) => format!("a{number}"),
            Expression::GlobalVariable(variable) => self.global(*variable),
            Expression::LocalVariable(variable) => format!("l{}", variable.index()),
            Expression::Load { pointer } => match self.pointee(body, *pointer) {
                TypeInner::Atomic(_) => format!("atomic_read({})", of(*pointer)?),
                _ => of(*pointer)?,
            },
            Expression::Unary { op, expr } => {
                let function = match op {
                    UnaryOperator::Negate => "negated",
                    UnaryOperator::LogicalNot => "denied",
                    UnaryOperator::BitwiseNot => "inverted",
                };
                format!("{function}({})", of(*expr)?)
            }
            Expression::Binary { op, left, right } => binary(*op, &of(*left)?, &of(*right)?),
            Expression::Select { condition, accept, reject } => {
                format!("select({}, {}, {})", of(*reject)?, of(*accept)?, of(*condition)?)
            }
            Expression::Relational { fun, argument } => {
                let function = match fun {
                    RelationalFunction::All => "all_of",
                    RelationalFunction::Any => "any_of",
                    other => return Err(format!("it uses {other:?}")),
                };
                format!("{function}({})", of(*argument)?)
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let arguments = [Some(*arg), *arg1, *arg2, *arg3].into_iter().flatten().map(of);
                let arguments = arguments.collect::<Result<Vec<_>, _>>()?.join(", ");
                format!("math_{}({arguments})", format!("{fun:?}").to_lowercase())
            }
            Expression::As { expr, kind, convert: Some(width) } => {
                format!("convert<{}>({})", kind_name(*kind, *width)?, of(*expr)?)
            }
            Expression::As { expr, kind, convert: None } => format!("bits<{}>({})", kind_name(*kind, 4)?, of(*expr)?),
            Expression::ArrayLength(pointer) => self.length(body, *pointer)?,
            other => return Err(format!("it uses {other:?}")),
        })
    }

    /// A global variable as a place.
    fn global(&self, handle: Handle<naga::GlobalVariable>) -> String {
        let variable = &self.module.global_variables[handle];
        let name = self.global_name(handle);
        let is_array =
            matches!(self.module.types[variable.ty].inner, TypeInner::Array { size: naga::ArraySize::Dynamic, .. });
        match variable.space {
            naga::AddressSpace::Storage { .. } if !is_array => format!("(*{name})"),
            _ => name,
        }
    }

    /// The global array of unknown length that a pointer is.
    fn unsized_array(&self, body: &Body<'_>, pointer: Handle<Expression>) -> Option<Handle<naga::GlobalVariable>> {
        let Expression::GlobalVariable(handle) = body.function.expressions[pointer] else { return None };
        let ty = self.module.global_variables[handle].ty;
        let is_unsized = matches!(self.module.types[ty].inner, TypeInner::Array { size: naga::ArraySize::Dynamic, .. });
        is_unsized.then_some(handle)
    }

    /// The elements of an array of unknown length.
    fn length(&self, body: &Body<'_>, pointer: Handle<Expression>) -> Result<String, Refused> {
        let handle = self.unsized_array(body, pointer).ok_or("it asks for the length of a part of a binding")?;
        let name = self.global_name(handle);
        Ok(format!("(u32)({name}_bytes / sizeof(*{name}))"))
    }

    /// An element of an array or vector.
    fn element(&self, body: &Body<'_>, base: Handle<Expression>, index: &str) -> Result<String, Refused> {
        match self.unsized_array(body, base) {
            Some(handle) => {
                let name = self.global_name(handle);
                Ok(format!("{name}[LIMIT({index}, {name}_bytes / sizeof(*{name}))]"))
            }
            None => Ok(format!("{}[{index}]", self.expression(body, base)?)),
        }
    }

    /// A member of a struct, a component of a vector or an element of an array, by a constant number.
    fn member_of(&self, body: &Body<'_>, base: Handle<Expression>, index: u32) -> Result<String, Refused> {
        match self.pointee(body, base) {
            TypeInner::Struct { members, .. } => {
                Ok(format!("{}.{}", self.expression(body, base)?, field(members, index as usize)))
            }
            TypeInner::Vector { .. } | TypeInner::ValuePointer { .. } => {
                let component = ["x", "y", "z", "w"].get(index as usize).ok_or("it has a vector of more than four")?;
                Ok(format!("{}.{component}", self.expression(body, base)?))
            }
            _ => self.element(body, base, &format!("{index}u")),
        }
    }
}

fn letter(component: SwizzleComponent) -> &'static str {
    match component {
        SwizzleComponent::X => "x",
        SwizzleComponent::Y => "y",
        SwizzleComponent::Z => "z",
        SwizzleComponent::W => "w",
    }
}

fn binary(op: BinaryOperator, left: &str, right: &str) -> String {
    let function = match op {
        BinaryOperator::Add => "add",
        BinaryOperator::Subtract => "sub",
        BinaryOperator::Multiply => "mul",
        BinaryOperator::Divide => "divided",
        BinaryOperator::Modulo => "rest",
        BinaryOperator::Equal => "eq",
        BinaryOperator::NotEqual => "ne",
        BinaryOperator::Less => "lt",
        BinaryOperator::LessEqual => "le",
        BinaryOperator::Greater => "gt",
        BinaryOperator::GreaterEqual => "ge",
        BinaryOperator::And => "bit_and",
        BinaryOperator::InclusiveOr => "bit_or",
        BinaryOperator::ExclusiveOr => "bit_xor",
        BinaryOperator::ShiftLeft => "shl",
        BinaryOperator::ShiftRight => "shr",
        BinaryOperator::LogicalAnd => return format!("({left} && {right})"),
        BinaryOperator::LogicalOr => return format!("({left} || {right})"),
    };
    format!("{function}({left}, {right})")
}
