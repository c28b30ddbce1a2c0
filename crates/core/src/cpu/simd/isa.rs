//! Instruction sets and their detection.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::{F32s, Scalar};

/// An instruction set that this CPU has.
///
/// A value is proof that its instructions may run: only [`Isa::available`] makes one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(pub(super) IsaKind);

/// The instruction sets with a register type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IsaKind {
    /// No SIMD beyond what the compiler makes of plain loops.
    Scalar,
    /// AVX2, FMA and F16C: 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI: 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON: 4 lanes; every 64-bit Arm has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The best one of this CPU.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Isa(IsaKind::Scalar))
    }

    /// All that this CPU has, the best last.
    pub fn available() -> Vec<Self> {
        let mut isas = vec![Isa(IsaKind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                isas.push(Isa(IsaKind::Avx2));
            }
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let rest = is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
            if wide && rest && is_x86_feature_detected!("avx512vnni") && isas.len() == 2 {
                isas.push(Isa(IsaKind::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        isas.push(Isa(IsaKind::Neon));
        isas
    }

    /// The number of f32 in a register.
    pub fn lanes(self) -> usize {
        match self.0 {
            IsaKind::Scalar => Scalar::LANES,
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            IsaKind::Neon => Neon::LANES,
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self.0 {
            IsaKind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            IsaKind::Neon => "neon",
        })
    }
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
