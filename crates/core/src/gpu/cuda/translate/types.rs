//! Types, names and constants.

use super::{Refused, Writer};
use naga::proc::TypeResolution;
use naga::{
    ArraySize, Expression, Function, GlobalVariable, Handle, Literal, Scalar, ScalarKind, Type, TypeInner, VectorSize,
};

impl Writer<'_> {
    /// The structs of the module. Those that lie in memory (`laid_out`) must have WGSL's layout in C++, too.
    pub(super) fn structs(&mut self, laid_out: &[Handle<Type>]) -> Result<(), Refused> {
        for (handle, ty) in self.module.types.iter() {
            let TypeInner::Struct { members, span } = &ty.inner else { continue };
            let name = self.ty(handle)?;
            let mut fields = String::new();
            for (number, member) in members.iter().enumerate() {
                fields += &format!("{} {}; ", self.ty(member.ty)?, field(members, number));
            }
            self.line(&format!("struct {name} {{ {fields}}};"));
            if laid_out.contains(&handle) && self.layout(handle).size != *span {
                return Err(format!("its struct {name} has another layout in C++: order its fields by size"));
            }
        }
        Ok(())
    }

    /// The layout of a type in C++; of size 0 where it differs from that of WGSL.
    fn layout(&self, handle: Handle<Type>) -> Layout {
        match &self.module.types[handle].inner {
            TypeInner::Vector { size: VectorSize::Tri, .. } => Layout { size: 12, align: 4 },
            TypeInner::Vector { size, .. } => Layout { size: 4 * *size as u32, align: 4 * *size as u32 },
            TypeInner::Array { base, size: ArraySize::Constant(len), stride } => {
                let Layout { size, align } = self.layout(*base);
                Layout { size: if size == *stride { size * len.get() } else { 0 }, align }
            }
            TypeInner::Struct { members, .. } => {
                let mut struct_ = Layout { size: 0, align: 1 };
                for member in members {
                    let Layout { size, align } = self.layout(member.ty);
                    let offset = struct_.size.next_multiple_of(align);
                    if size == 0 || offset != member.offset {
                        return Layout { size: 0, align };
                    }
                    struct_ = Layout { size: offset + size, align: struct_.align.max(align) };
                }
                Layout { size: struct_.size.next_multiple_of(struct_.align), ..struct_ }
            }
            _ => Layout { size: 4, align: 4 },
        }
    }

    pub(super) fn ty(&self, handle: Handle<Type>) -> Result<String, Refused> {
        let ty = &self.module.types[handle];
        match &ty.inner {
            TypeInner::Struct { .. } => Ok(format!("S{}_{}", handle.index(), ty.name.as_deref().unwrap_or("unnamed"))),
            inner => self.inner(inner),
        }
    }

    pub(super) fn inner(&self, inner: &TypeInner) -> Result<String, Refused> {
        Ok(match *inner {
            TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => scalar_name(scalar)?.to_owned(),
            TypeInner::Vector { size, scalar } => format!("vec<{}, {}>", scalar_name(scalar)?, size as u32),
            TypeInner::Array { base, size: ArraySize::Constant(len), .. } => format!("arr<{}, {len}>", self.ty(base)?),
            TypeInner::Pointer { base, .. } => format!("{}&", self.ty(base)?),
            TypeInner::ValuePointer { size: Some(size), scalar, .. } => {
                format!("vec<{}, {}>&", scalar_name(scalar)?, size as u32)
            }
            TypeInner::ValuePointer { size: None, scalar, .. } => format!("{}&", scalar_name(scalar)?),
            ref other => return Err(format!("it has a type {other:?}")),
        })
    }

    pub(super) fn resolved(&self, ty: &TypeResolution) -> Result<String, Refused> {
        match ty {
            TypeResolution::Handle(handle) => self.ty(*handle),
            TypeResolution::Value(inner) => self.inner(inner),
        }
    }

    pub(super) fn global_name(&self, handle: Handle<GlobalVariable>) -> String {
        let name = self.module.global_variables[handle].name.as_deref().unwrap_or("");
        format!("g{}_{name}", handle.index())
    }

    pub(super) fn function_name(&self, handle: Handle<Function>) -> String {
        let name = self.module.functions[handle].name.as_deref().unwrap_or("");
        format!("f{}_{name}", handle.index())
    }

    /// An expression of the module's constants.
    pub(super) fn constant(&self, handle: Handle<Expression>) -> Result<String, Refused> {
        match &self.module.global_expressions[handle] {
            Expression::Literal(value) => literal(*value),
            Expression::Constant(constant) => self.constant(self.module.constants[*constant].init),
            Expression::ZeroValue(ty) => Ok(format!("{}{{}}", self.ty(*ty)?)),
            Expression::Compose { ty, components } => {
                let parts: Result<Vec<_>, _> = components.iter().map(|part| self.constant(*part)).collect();
                self.composed(*ty, &parts?)
            }
            Expression::Splat { size, value } => Ok(format!("splat<{}>({})", *size as u32, self.constant(*value)?)),
            other => Err(format!("it has a constant {other:?}")),
        }
    }

    /// A value of a type that is made of parts.
    pub(super) fn composed(&self, ty: Handle<Type>, parts: &[String]) -> Result<String, Refused> {
        let parts = parts.join(", ");
        Ok(match self.module.types[ty].inner {
            TypeInner::Vector { size, scalar } => {
                format!("make<{}, {}>({parts})", scalar_name(scalar)?, size as u32)
            }
            TypeInner::Array { .. } => format!("{}{{{{{parts}}}}}", self.ty(ty)?),
            _ => format!("{}{{{parts}}}", self.ty(ty)?),
        })
    }
}

/// Bytes of a type, and the multiple that it starts at.
#[derive(Clone, Copy)]
struct Layout {
    size: u32,
    align: u32,
}

/// The name of a struct's member.
pub(super) fn field(members: &[naga::StructMember], number: usize) -> String {
    let name = members.get(number).and_then(|member| member.name.as_deref()).unwrap_or("");
    format!("m{number}_{name}")
}

fn scalar_name(scalar: Scalar) -> Result<&'static str, Refused> {
    match (scalar.kind, scalar.width) {
        (ScalarKind::Float, 4) => Ok("float"),
        (ScalarKind::Uint, 4) => Ok("u32"),
        (ScalarKind::Sint, 4) => Ok("int"),
        (ScalarKind::Bool, _) => Ok("bool"),
        _ => Err(format!("it has values of the type {scalar:?}")),
    }
}

/// The type that `As` converts to.
pub(super) fn kind_name(kind: ScalarKind, width: u8) -> Result<&'static str, Refused> {
    scalar_name(Scalar { kind, width })
}

pub(super) fn literal(value: Literal) -> Result<String, Refused> {
    Ok(match value {
        // by its bits, so that every value arrives as it is
        Literal::F32(x) => format!("__uint_as_float(0x{:08x}u)", x.to_bits()),
        Literal::U32(x) => format!("{x}u"),
        Literal::I32(x) => format!("(int)0x{x:08x}u"),
        Literal::Bool(x) => x.to_string(),
        other => return Err(format!("it has a literal {other:?}")),
    })
}
