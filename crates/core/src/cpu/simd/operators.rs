//! The operators of registers.

/// Implements operators of two registers. An operation takes and returns what a register holds: an intrinsic, or a
/// closure.
macro_rules! operators {
    ($register:ident: $($trait:ident $method:ident $operation:expr),+ $(,)?) => {$(
        impl std::ops::$trait for $register {
            type Output = Self;
            #[inline(always)]
            #[allow(unused_unsafe)] // a closure and an intrinsic of the baseline are safe
            fn $method(self, other: Self) -> Self {
                // SAFETY: only `dispatch` instantiates the type, with a detected instruction set.
                $register(unsafe { $operation(self.0, other.0) })
            }
        }
    )+};
}

/// Implements `+=` by `+`.
macro_rules! add_assign {
    ($register:ident) => {
        impl std::ops::AddAssign for $register {
            #[inline(always)]
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }
    };
}
