//! The block formats of ggml and what each becomes here.
//!
//! A block of 32 elements with a scale `d` and a minimum or a fixed offset is an affine group: `code · scale + bias`.
//! The sub-blocks of Q4_K and Q5_K are affine groups of 32, too, whose scales are products of 17 bits, so they need
//! f32. Q2_K, Q3_K and Q6_K have a scale for 16 elements, which no affine format has: they are dequantized.
//!
//! Source: `ggml-quants.c` and `ggml-common.h` of ggml.

use alluvium_core::DType;
use half::{bf16, f16};

/// Elements of an affine group.
pub(super) const GROUP: usize = 32;
/// Elements of a block of the K formats.
const SUPER: usize = 256;

/// A type of ggml that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What a type becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Elements of a floating-point dtype.
    Dense(DType),
    /// Affine groups of 32 with codes of `bits` bits; the dtype that holds their scales and biases exactly.
    Affine { bits: usize, scales: DType },
    /// Blocks that are dequantized.
    Blocks,
}

impl BlockType {
    /// The type with this number.
    ///
    /// # Errors
    /// Its name, when it cannot be read.
    pub(super) fn of(ggml_type: u32) -> Result<Self, String> {
        Ok(match ggml_type {
            0 => BlockType::F32,
            1 => BlockType::F16,
            2 => BlockType::Q4_0,
            3 => BlockType::Q4_1,
            6 => BlockType::Q5_0,
            7 => BlockType::Q5_1,
            8 => BlockType::Q8_0,
            10 => BlockType::Q2K,
            11 => BlockType::Q3K,
            12 => BlockType::Q4K,
            13 => BlockType::Q5K,
            14 => BlockType::Q6K,
            30 => BlockType::Bf16,
            other => return Err(unread(other)),
        })
    }

    /// The name that ggml gives it.
    pub(super) fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::Bf16 => "BF16",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// The elements and the bytes of a block.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            BlockType::F32 => (1, 4),
            BlockType::F16 | BlockType::Bf16 => (1, 2),
            BlockType::Q4_0 => (GROUP, 18),
            BlockType::Q4_1 => (GROUP, 20),
            BlockType::Q5_0 => (GROUP, 22),
            BlockType::Q5_1 => (GROUP, 24),
            BlockType::Q8_0 => (GROUP, 34),
            BlockType::Q2K => (SUPER, 84),
            BlockType::Q3K => (SUPER, 110),
            BlockType::Q4K => (SUPER, 144),
            BlockType::Q5K => (SUPER, 176),
            BlockType::Q6K => (SUPER, 210),
        }
    }

    /// What it becomes.
    pub(super) fn stored(self) -> Stored {
        let affine = |bits, scales| Stored::Affine { bits, scales };
        match self {
            BlockType::F32 => Stored::Dense(DType::F32),
            BlockType::F16 => Stored::Dense(DType::F16),
            BlockType::Bf16 => Stored::Dense(DType::BF16),
            BlockType::Q4_0 | BlockType::Q4_1 => affine(4, DType::F16),
            BlockType::Q5_0 | BlockType::Q5_1 => affine(5, DType::F16),
            BlockType::Q8_0 => affine(8, DType::F16),
            BlockType::Q4K => affine(4, DType::F32),
            BlockType::Q5K => affine(5, DType::F32),
            BlockType::Q2K | BlockType::Q3K | BlockType::Q6K => Stored::Blocks,
        }
    }

    /// The codes of a block of an affine type.
    pub(super) fn codes(self, block: &[u8], codes: &mut [u8]) {
        match self {
            BlockType::Q4_0 => nibbles(&block[2..], codes),
            BlockType::Q4_1 => nibbles(&block[4..], codes),
            BlockType::Q5_0 => fifth_bits(&block[2..6], &block[6..], codes),
            BlockType::Q5_1 => fifth_bits(&block[4..8], &block[8..], codes),
            BlockType::Q8_0 => {
                for (code, &q) in codes.iter_mut().zip(&block[2..]) {
                    // q + 128 of a signed byte
                    *code = q ^ 0x80;
                }
            }
            BlockType::Q4K => {
                for (pair, qs) in codes.chunks_exact_mut(2 * GROUP).zip(block[16..].chunks_exact(GROUP)) {
                    let (low, high) = pair.split_at_mut(GROUP);
                    for ((low, high), q) in low.iter_mut().zip(high).zip(qs) {
                        (*low, *high) = (q & 0xF, q >> 4);
                    }
                }
            }
            BlockType::Q5K => {
                let (high_bits, qs) = block[16..].split_at(GROUP);
                for (n, (pair, qs)) in codes.chunks_exact_mut(2 * GROUP).zip(qs.chunks_exact(GROUP)).enumerate() {
                    let (low, high) = pair.split_at_mut(GROUP);
                    for (((low, high), q), bits) in low.iter_mut().zip(high).zip(qs).zip(high_bits) {
                        let bits = bits >> (2 * n);
                        (*low, *high) = (q & 0xF | (bits & 1) << 4, q >> 4 | (bits >> 1 & 1) << 4);
                    }
                }
            }
            _ => {}
        }
    }

    /// The scale and the bias of each group of a block of an affine type.
    pub(super) fn groups(self, block: &[u8], mut group: impl FnMut(usize, f32, f32)) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        match self {
            BlockType::Q4_0 => group(0, half(0), -8.0 * half(0)),
            BlockType::Q5_0 => group(0, half(0), -16.0 * half(0)),
            BlockType::Q8_0 => group(0, half(0), -128.0 * half(0)),
            BlockType::Q4_1 | BlockType::Q5_1 => group(0, half(0), half(2)),
            BlockType::Q4K | BlockType::Q5K => {
                let (d, least) = (half(0), half(2));
                for n in 0..SUPER / GROUP {
                    let (scale, minimum) = six_bits(n, &block[4..16]);
                    group(n, d * f32::from(scale), -(least * f32::from(minimum)));
                }
            }
            _ => {}
        }
    }

    /// The elements of a block.
    pub(super) fn values(self, block: &[u8], values: &mut [f32]) {
        match self {
            BlockType::F32 => {
                values.iter_mut().for_each(|x| *x = f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
            }
            BlockType::F16 => values.iter_mut().for_each(|x| *x = f16::from_le_bytes([block[0], block[1]]).to_f32()),
            BlockType::Bf16 => values.iter_mut().for_each(|x| *x = bf16::from_le_bytes([block[0], block[1]]).to_f32()),
            BlockType::Q2K => q2_k(block, values),
            BlockType::Q3K => q3_k(block, values),
            BlockType::Q6K => q6_k(block, values),
            affine => {
                let mut codes = [0; SUPER];
                affine.codes(block, &mut codes[..values.len()]);
                affine.groups(block, |n, scale, bias| {
                    let place = n * GROUP..(n + 1) * GROUP;
                    for (x, &code) in values[place.clone()].iter_mut().zip(&codes[place]) {
                        *x = f32::from(code) * scale + bias;
                    }
                });
            }
        }
    }
}

/// The name of a type that is not read.
fn unread(ggml_type: u32) -> String {
    let name = match ggml_type {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        other => return format!("ggml type {other}"),
    };
    name.to_owned()
}

/// The low nibbles, then the high ones.
fn nibbles(qs: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(GROUP / 2);
    for ((low, high), q) in low.iter_mut().zip(high).zip(qs) {
        (*low, *high) = (q & 0xF, q >> 4);
    }
}

/// As [`nibbles`], with a fifth bit for each element.
fn fifth_bits(high_bits: &[u8], qs: &[u8], codes: &mut [u8]) {
    nibbles(qs, codes);
    for (n, code) in codes.iter_mut().enumerate() {
        *code |= (high_bits[n / 8] >> (n % 8) & 1) << 4;
    }
}

/// The scale and the minimum of a sub-block, 6 bits each, from 12 bytes.
fn six_bits(n: usize, packed: &[u8]) -> (u8, u8) {
    if n < 4 {
        return (packed[n] & 63, packed[n + 4] & 63);
    }
    let low = packed[n + 4];
    (low & 0xF | packed[n - 4] >> 6 << 4, low >> 4 | packed[n] >> 6 << 4)
}

fn q2_k(block: &[u8], values: &mut [f32]) {
    let (scales, rest) = block.split_at(16);
    let (qs, rest) = rest.split_at(64);
    let half = |at: usize| f16::from_le_bytes([rest[at], rest[at + 1]]).to_f32();
    let (d, least) = (half(0), half(2));
    for (n, (part, &packed)) in values.chunks_exact_mut(16).zip(scales).enumerate() {
        let (scale, minimum) = (d * f32::from(packed & 0xF), least * f32::from(packed >> 4));
        // 128 elements share 32 bytes; each 32 of them take two bits of all
        let (qs, shift) = (&qs[n / 8 * 32 + n % 2 * 16..], n % 8 / 2 * 2);
        for (x, q) in part.iter_mut().zip(qs) {
            *x = scale * f32::from(q >> shift & 3) - minimum;
        }
    }
}

fn q3_k(block: &[u8], values: &mut [f32]) {
    let (high_bits, rest) = block.split_at(32);
    let (qs, rest) = rest.split_at(64);
    let (packed, d) = rest.split_at(12);
    let d = f16::from_le_bytes([d[0], d[1]]).to_f32();
    for (n, part) in values.chunks_exact_mut(16).enumerate() {
        // 16 scales of 6 bits: four low bits each in eight bytes, two high ones in the four bytes after
        let low = packed[n % 8] >> (n / 8 * 4) & 0xF;
        let high = packed[8 + n % 4] >> (n / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (from, shift) = (n % 2 * 16, n % 8 / 2 * 2);
        let (qs, high_bits) = (&qs[n / 8 * 32 + from..], &high_bits[from..]);
        for ((x, q), bits) in part.iter_mut().zip(qs).zip(high_bits) {
            let minus = if bits >> (n / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *x = scale * (f32::from(q >> shift & 3) - minus);
        }
    }
}

fn q6_k(block: &[u8], values: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = f16::from_le_bytes([d[0], d[1]]).to_f32();
    for (n, (part, &scale)) in values.chunks_exact_mut(16).zip(scales).enumerate() {
        let scale = d * f32::from(scale as i8);
        // 128 elements share 64 bytes of nibbles and 32 of pairs of bits
        let (half, quarter, from) = (n / 8, n % 8 / 2, n % 2 * 16);
        let low = &low[half * 64 + quarter % 2 * 32 + from..];
        let high = &high[half * 32 + from..];
        for ((x, low), high) in part.iter_mut().zip(low).zip(high) {
            let code = low >> (quarter / 2 * 4) & 0xF | (high >> (quarter * 2) & 3) << 4;
            *x = scale * (f32::from(code) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::safetensors;
    use alluvium_core::Device;

    #[test]
    fn every_block_has_the_values_that_ggml_gives_it() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/blocks.safetensors");
        let file = safetensors::read(path).unwrap();
        let mut types = 0;
        for kind in (0..64).filter_map(|n| BlockType::of(n).ok()).filter(|kind| kind.block().0 > 1) {
            let read = |part: &str| file.tensor(&format!("{}.{part}", kind.name()), &Device::cpu()).unwrap();
            let (bytes, want) = (read("bytes").to_bytes().unwrap(), read("values").to_vec::<f32>().unwrap());
            let (elements, size) = kind.block();
            let mut values = vec![f32::NAN; want.len()];
            for (values, block) in values.chunks_mut(elements).zip(bytes.chunks(size)) {
                kind.values(block, values);
            }
            assert_eq!(values, want, "{}", kind.name());
            types += 1;
        }
        assert_eq!((types, file.names().count()), (10, 20));
    }
}
