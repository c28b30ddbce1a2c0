//! The one error of the library.

use crate::{DType, Device, Shape};
use std::path::{Path, PathBuf};

/// The result of a fallible function of the library.
pub type Result<T> = std::result::Result<T, Error>;

/// The one error of the library. Match on [`Error::kind`]; print it for a person.
#[derive(Debug)]
pub struct Error(Box<Kind>);

/// The cause of an error.
///
/// | kind | a program may |
/// |---|---|
/// | `Shape`, `Dtype`, `Device`, `Value`, `NoGradient` | correct its call |
/// | `File`, `Unsupported`, `Io` | name the file, and try another |
/// | `Memory`, `Gpu` | try a smaller batch, or another device |
#[derive(Debug)]
#[non_exhaustive]
pub enum Kind {
    /// A tensor's shape does not fit the operation's contract.
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument, as the contract names it.
        arg: &'static str,
        /// The actual one.
        got: Shape,
        /// The expected one, in words.
        want: String,
    },
    /// A tensor's dtype is not one the operation takes.
    Dtype {
        /// The operation.
        op: &'static str,
        /// The argument, as the contract names it.
        arg: &'static str,
        /// The actual one.
        got: DType,
        /// The expected one, in words.
        want: String,
    },
    /// Two arguments live on different devices, or on two handles of one device.
    Device {
        /// The operation.
        op: &'static str,
        /// The two arguments.
        args: [&'static str; 2],
        /// The names of their devices: `cpu`, `wgpu:0`.
        devices: [String; 2],
    },
    /// A value, an option or an element that is out of range.
    Value {
        /// The operation, or what the call was to make.
        what: &'static str,
        /// The actual value and the expected one.
        why: String,
    },
    /// A traced tensor reached an operation that has no gradient.
    NoGradient {
        /// The operation.
        op: &'static str,
        /// Why it has none.
        why: &'static str,
    },
    /// The device's memory, or the limit set for it, is used up.
    Memory {
        /// Bytes that were requested.
        asked: usize,
        /// Bytes in use.
        used: usize,
        /// The limit in bytes; `None` when the system refused.
        limit: Option<usize>,
    },
    /// A GPU that does not exist, lacks a feature, allows less than requested, or was lost.
    Gpu {
        /// Its name: `wgpu:0`.
        device: String,
        /// The cause, and a remedy.
        why: String,
    },
    /// A malformed file of a checkpoint, a configuration or a data set.
    File {
        /// The file or folder.
        path: PathBuf,
        /// The fault of the file, and a remedy.
        why: String,
    },
    /// A well-formed file that asks for what the library does not have: a model type, a scaling, an activation.
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What it asks for, and what there is.
        why: String,
    },
    /// Reading or writing a file.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempt: "read", "write", "create".
        doing: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Kind {
    /// Two arguments of `op` on different devices.
    pub fn device(op: &'static str, a: (&'static str, &Device), b: (&'static str, &Device)) -> Self {
        Kind::Device { op, args: [a.0, b.0], devices: [a.1.to_string(), b.1.to_string()] }
    }
}

impl Error {
    /// The kind of error, for a program.
    pub fn kind(&self) -> &Kind {
        &self.0
    }

    /// An error for a value or an option of `what` that is out of range.
    pub fn value(what: &'static str, why: impl Into<String>) -> Self {
        Kind::Value { what, why: why.into() }.into()
    }

    /// An error for a malformed file.
    pub fn file(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Kind::File { path: path.as_ref().to_owned(), why: why.into() }.into()
    }

    /// An error for a well-formed file that asks for what the library does not have.
    pub fn unsupported(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Kind::Unsupported { path: path.as_ref().to_owned(), why: why.into() }.into()
    }

    /// An error of the system while `doing` something with `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Kind::Io { path, doing, source }.into()
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Error(Box::new(kind))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind() {
            Kind::Shape { op, arg, got, want } => write!(f, "{op}: `{arg}` is {got}, expected {want}"),
            Kind::Dtype { op, arg, got, want } => write!(f, "{op}: `{arg}` is {got}, expected {want}"),
            Kind::Device { op, args: [a, b], devices: [x, y] } if x == y => {
                let todo = "open the device once and clone the handle";
                write!(f, "{op}: `{a}` and `{b}` are on two handles of {x}; {todo}")
            }
            Kind::Device { op, args: [a, b], devices: [x, y] } => write!(f, "{op}: `{a}` is on {x}, `{b}` is on {y}"),
            Kind::Value { what, why } => write!(f, "{what}: {why}"),
            Kind::NoGradient { op, why } => {
                write!(f, "{op}: a traced tensor came, but there is no gradient: {why}; detach() it to go on without")
            }
            Kind::Memory { asked, used, limit: Some(limit) } => write!(
                f,
                "out of memory: {} asked for, {} in use, limit {}",
                Bytes(*asked),
                Bytes(*used),
                Bytes(*limit)
            ),
            Kind::Memory { asked, used, limit: None } => {
                write!(f, "out of memory: the system refused {}, {} in use", Bytes(*asked), Bytes(*used))
            }
            Kind::Gpu { device, why } => write!(f, "{device}: {why}"),
            Kind::File { path, why } | Kind::Unsupported { path, why } => write!(f, "{}: {why}", path.display()),
            Kind::Io { path, doing, source } => write!(f, "cannot {doing} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.kind() {
            // Display prints the system's error already; a printed chain must not repeat it
            Kind::Io { source, .. } => source.source(),
            _ => None,
        }
    }
}

/// A number of bytes, for a person.
pub(crate) struct Bytes(pub(crate) usize);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n >= 1 << 30 => write!(f, "{:.2} GiB", n as f64 / (1u64 << 30) as f64),
            n if n >= 1 << 20 => write!(f, "{:.1} MiB", n as f64 / (1u64 << 20) as f64),
            n if n >= 1 << 10 => write!(f, "{:.1} KiB", n as f64 / 1024.0),
            n => write!(f, "{n} B"),
        }
    }
}
