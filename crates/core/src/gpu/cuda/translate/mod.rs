//! CUDA C++ from WGSL, by way of naga's module: one text of a kernel serves every GPU.
//!
//! A module becomes a class: its private variables and the pointers of its bindings are members, its functions are
//! methods, so that names and calls stay as they are. The kernel makes an object of it and calls the entry point; the
//! compiler puts everything into registers. Memory of a workgroup is `__shared__`.
//!
//! `fma` is explicit in WGSL, so the text is compiled without contraction (`--fmad=false`), and rounds as on other
//! GPUs.

mod expressions;
mod statements;
mod types;

use crate::gpu::Natives;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, ArraySize, Binding, BuiltIn, EntryPoint, GlobalVariable, Handle, Module, StorageAccess, TypeInner,
};
use std::fmt::Write as _;

/// A kernel as CUDA C++, and how to launch it.
#[derive(Clone, Debug)]
pub(in crate::gpu) struct Translated {
    pub(in crate::gpu) text: String,
    /// The bindings that the kernel takes, as a pointer and a number of bytes each, in this order.
    pub(in crate::gpu) bindings: Vec<u32>,
    /// Bytes of the struct that follows them; 0 if the kernel uses none.
    pub(in crate::gpu) params: usize,
    /// Bytes of the struct that the text declares, whether or not this kernel uses it.
    pub(in crate::gpu) declared_params: usize,
    /// The name of its function.
    pub(in crate::gpu) symbol: String,
    /// Threads of a block.
    pub(in crate::gpu) threads: u32,
    /// One bit for each binding that the kernel may write.
    pub(in crate::gpu) writes: u64,
}

/// The name of a kernel's function, which NVIDIA's tools show.
fn symbol(kernel: &str, entry: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("{}_{entry}", kernel.chars().map(word).collect::<String>())
}

/// What has no translation, in words.
type Refused = String;

/// The text under construction.
struct Writer<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    natives: &'a Natives,
    text: String,
    /// The name of the kernel's function.
    symbol: String,
    indent: usize,
}

/// Translates one entry point of the WGSL text of a kernel. One that is not `trusted` gets bounds checks and zeroed memory.
///
/// # Errors
/// When the text is no valid WGSL, or uses what has no translation.
pub(in crate::gpu) fn translate(
    text: &str,
    (kernel, entry): (&str, &str),
    trusted: bool,
    natives: &Natives,
) -> Result<Translated, Refused> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(text))?;
    let found = module.entry_points.iter().position(|point| point.name == entry);
    let at = found.ok_or_else(|| format!("it has no entry point {entry}"))?;
    let mut writer =
        Writer { module: &module, info: &info, natives, text: String::new(), symbol: symbol(kernel, entry), indent: 0 };
    let _ = writeln!(writer.text, "#define CHECKED {}", u32::from(!trusted));
    writer.text.push_str(include_str!("prelude.cuh"));
    writer.module(at, trusted)
}

impl<'a> Writer<'a> {
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "{:width$}{line}", "", width = 4 * self.indent);
    }

    /// The module of one entry point, as a class and a kernel.
    fn module(mut self, at: usize, trusted: bool) -> Result<Translated, Refused> {
        let entry = &self.module.entry_points[at];
        let used = self.used(at);
        let laid_out: Vec<_> = used.iter().filter_map(|(_, variable)| self.element_type(variable)).collect();
        self.structs(&laid_out)?;
        self.line("struct Module {");
        self.indent += 1;
        for (handle, variable) in used.iter().copied() {
            let member = self.member(handle, variable)?;
            self.line(&member);
        }
        // functions in the order of their declaration, which is that of their calls
        let called: Vec<_> = self.module.functions.iter().filter(|&(handle, _)| self.calls(at, handle)).collect();
        if called.iter().any(|(_, function)| self.native_body(function).is_some()) {
            for (name, value) in &self.natives.constants {
                self.line(&format!("static constexpr u32 {name} = {value}u;"));
            }
        }
        for (handle, function) in called {
            let name = self.function_name(handle);
            match self.native_body(function) {
                Some(body) => self.native(function, &name, body)?,
                None => self.function(function, &self.info[handle], &name)?,
            }
        }
        self.function(&entry.function, self.info.get_entry_point(at), "entry")?;
        self.indent -= 1;
        self.line("};");
        let mut bound: Vec<_> = used.into_iter().filter(|(_, variable)| variable.binding.is_some()).collect();
        bound.sort_by_key(|(_, variable)| variable.binding.map(|at| at.binding));
        let params = self.params(self.used(at).into_iter().map(|(_, variable)| variable))?;
        let declared_params = self.params(self.module.global_variables.iter().map(|(_, variable)| variable))?;
        self.kernel(at, entry, &bound, trusted)?;
        let mut bindings = Vec::with_capacity(bound.len());
        let mut writes = 0u64;
        for (_, variable) in bound {
            let Some(at) = variable.binding else { continue };
            if at.group != 0 || at.binding >= 64 {
                return Err(format!("it has binding {} of group {}: only 0 to 63 of group 0", at.binding, at.group));
            }
            writes |= u64::from(is_written(variable)) << at.binding;
            bindings.push(at.binding);
        }
        let threads = entry.workgroup_size.iter().product();
        Ok(Translated { text: self.text, bindings, params, declared_params, symbol: self.symbol, threads, writes })
    }

    /// The global variables that an entry point uses.
    fn used(&self, at: usize) -> Vec<(Handle<GlobalVariable>, &'a GlobalVariable)> {
        let info = self.info.get_entry_point(at);
        self.module.global_variables.iter().filter(|(handle, _)| !info[*handle].is_empty()).collect()
    }

    /// The body that stands in for a function's own.
    fn native_body(&self, function: &naga::Function) -> Option<&'static str> {
        let name = function.name.as_deref()?;
        self.natives.bodies.iter().find(|(function, _)| function == name).map(|&(_, body)| body)
    }

    /// Whether an entry point may reach a function: it uses no global that the entry point does not use.
    fn calls(&self, at: usize, function: Handle<naga::Function>) -> bool {
        let (entry, info) = (self.info.get_entry_point(at), &self.info[function]);
        self.module.global_variables.iter().all(|(handle, _)| info[handle].is_empty() || !entry[handle].is_empty())
    }

    /// The bytes of the immediates among these variables.
    fn params<'v>(&self, variables: impl Iterator<Item = &'v GlobalVariable>) -> Result<usize, Refused> {
        let immediates = variables.filter(|variable| variable.space == AddressSpace::Immediate);
        let len = |ty: Handle<naga::Type>| self.module.types[ty].inner.size(self.module.to_ctx()) as usize;
        let lens: Vec<usize> = immediates.map(|variable| len(variable.ty)).collect();
        match lens[..] {
            [] => Ok(0),
            [len] => Ok(len),
            _ => Err("it has more than one variable of immediates".to_owned()),
        }
    }

    /// A global variable as a member of the class.
    fn member(&self, handle: Handle<GlobalVariable>, variable: &GlobalVariable) -> Result<String, Refused> {
        let name = self.global_name(handle);
        match variable.space {
            AddressSpace::Storage { .. } => Ok(format!("{} {name}; u64 {name}_bytes;", self.pointer(variable)?)),
            AddressSpace::WorkGroup => Ok(format!("{}& {name};", self.ty(variable.ty)?)),
            AddressSpace::Private | AddressSpace::Immediate => Ok(format!("{} {name};", self.ty(variable.ty)?)),
            space => Err(format!("it has a variable of {space:?}")),
        }
    }

    /// The type of the pointer to a storage variable's elements, or to itself where it is no array.
    fn pointer(&self, variable: &GlobalVariable) -> Result<String, Refused> {
        let element = self.ty(self.element_type(variable).unwrap_or(variable.ty))?;
        Ok(format!("{}{element}* __restrict__", if is_written(variable) { "" } else { "const " }))
    }

    /// The type that the memory of a binding, or of the immediates, is made of.
    fn element_type(&self, variable: &GlobalVariable) -> Option<Handle<naga::Type>> {
        match (variable.space, &self.module.types[variable.ty].inner) {
            (AddressSpace::Storage { .. }, TypeInner::Array { base, size: ArraySize::Dynamic, .. }) => Some(*base),
            (AddressSpace::Storage { .. } | AddressSpace::Immediate, _) => Some(variable.ty),
            _ => None,
        }
    }

    /// The kernel: it makes the module's object, and calls the entry point.
    fn kernel(
        &mut self,
        at: usize,
        entry: &EntryPoint,
        bound: &[(Handle<GlobalVariable>, &GlobalVariable)],
        trusted: bool,
    ) -> Result<(), Refused> {
        let mut arguments = Vec::new();
        for (handle, variable) in bound {
            let name = self.global_name(*handle);
            arguments.push(format!("{} {name}, u64 {name}_bytes", self.pointer(variable)?));
        }
        let mut members = Vec::new();
        let mut shared = Vec::new();
        for (handle, variable) in self.used(at) {
            let name = self.global_name(handle);
            match variable.space {
                AddressSpace::Storage { .. } => members.push(format!("{name}, {name}_bytes")),
                AddressSpace::WorkGroup => {
                    shared.push((self.ty(variable.ty)?, name.clone()));
                    members.push(name);
                }
                AddressSpace::Immediate => {
                    arguments.push(format!("const {} {name}", self.ty(variable.ty)?));
                    members.push(name);
                }
                _ => members.push(match variable.init {
                    Some(init) => self.constant(init)?,
                    None => format!("{}{{}}", self.ty(variable.ty)?),
                }),
            }
        }
        let threads: u32 = entry.workgroup_size.iter().product();
        let arguments = arguments.join(", ");
        let symbol = &self.symbol;
        let head = format!("extern \"C\" __global__ void __launch_bounds__({threads}) {symbol}({arguments}) {{");
        self.line(&head);
        self.indent += 1;
        for (ty, name) in &shared {
            self.line(&format!("__shared__ {ty} {name};"));
        }
        if !trusted && !shared.is_empty() {
            for (_, name) in &shared {
                self.line(&format!("zero_shared({name});"));
            }
            self.line("__syncthreads();");
        }
        self.line(&format!("Module module{{{}}};", members.join(", ")));
        let mut inputs = Vec::new();
        for argument in &entry.function.arguments {
            inputs.push(self.input(argument, entry.workgroup_size)?);
        }
        self.line(&format!("module.entry({});", inputs.join(", ")));
        self.indent -= 1;
        self.line("}");
        Ok(())
    }

    /// An argument of an entry point, made of the built-in values.
    fn input(&self, argument: &naga::FunctionArgument, size: [u32; 3]) -> Result<String, Refused> {
        if let Some(binding) = &argument.binding {
            return built_in(binding, size);
        }
        let TypeInner::Struct { members, .. } = &self.module.types[argument.ty].inner else {
            return Err("an argument of its entry point is no built-in value".to_owned());
        };
        let mut values = Vec::with_capacity(members.len());
        for member in members {
            let binding = member.binding.as_ref().ok_or("a member of its entry point's argument is no built-in")?;
            values.push(built_in(binding, size)?);
        }
        Ok(format!("{}{{{}}}", self.ty(argument.ty)?, values.join(", ")))
    }
}

/// Whether a kernel may write to a binding.
fn is_written(variable: &GlobalVariable) -> bool {
    matches!(variable.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE))
}

/// A built-in value of the thread; a block is one line of threads.
fn built_in(binding: &Binding, [x, y, _]: [u32; 3]) -> Result<String, Refused> {
    let Binding::BuiltIn(value) = binding else {
        return Err(format!("its entry point takes {binding:?}"));
    };
    let place = format!("threadIdx.x % {x}u, threadIdx.x / {x}u % {y}u, threadIdx.x / {}u", x * y);
    Ok(match value {
        BuiltIn::WorkGroupId => "vec<u32, 3>{blockIdx.x, blockIdx.y, blockIdx.z}".to_owned(),
        BuiltIn::NumWorkGroups => "vec<u32, 3>{gridDim.x, gridDim.y, gridDim.z}".to_owned(),
        BuiltIn::LocalInvocationIndex => "threadIdx.x".to_owned(),
        BuiltIn::LocalInvocationId => format!("vec<u32, 3>{{{place}}}"),
        BuiltIn::SubgroupInvocationId => "(threadIdx.x & 31u)".to_owned(),
        BuiltIn::SubgroupId => "(threadIdx.x >> 5)".to_owned(),
        BuiltIn::SubgroupSize => "32u".to_owned(),
        BuiltIn::NumSubgroups => "(blockDim.x >> 5)".to_owned(),
        other => return Err(format!("its entry point takes {other:?}")),
    })
}

#[cfg(test)]
mod tests;
