//! One product for each chunk and value head.

use super::{ChunkGates, Chunks};
use crate::common::gpu::{to_u32, to_u32s};
use alluvium_core::gpu::{Bind, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static PRODUCT: Kernel = crate::common::gpu::kernel("chunk product", &[include_str!("product.wgsl")]);

/// A side of a product: for each chunk and value head a matrix, found in a tensor by strides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductSide<'a> {
    tensor: &'a Tensor,
    strides: Strides,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
struct Strides {
    rows: u32,
    cols: u32,
    token: u32,
    chunk: u32,
    head: u32,
    share: u32,
}

// Strides are at most the tensor's elements, and a launch refuses a tensor whose elements need more than 32 bits.
impl<'a> ProductSide<'a> {
    /// The rows of a chunk's tokens: `[T, heads, width]`, of value heads or of key heads.
    pub(crate) fn tokens(chunks: &Chunks, tensor: &'a Tensor, width: usize) -> Self {
        let heads = tensor.elements() / (chunks.tokens * width);
        let token = (heads * width) as u32;
        let share = (chunks.v_heads / heads) as u32;
        ProductSide { tensor, strides: Strides { rows: token, cols: 1, token, chunk: 0, head: width as u32, share } }
    }

    /// The state of a chunk: `[chunks, G, V, K]`, a matrix of `V × K`.
    pub(crate) fn state(tensor: &'a Tensor) -> Self {
        let shape = tensor.shape();
        let (v_heads, matrix) = (shape[1], shape[2] * shape[3]);
        let [chunk, head, keys] = [v_heads * matrix, matrix, shape[3]].map(|n| n as u32);
        ProductSide { tensor, strides: Strides { rows: keys, cols: 1, token: 0, chunk, head, share: 1 } }
    }

    /// The same matrices transposed.
    pub(crate) fn t(self) -> Self {
        let Strides { rows, cols, .. } = self.strides;
        ProductSide { strides: Strides { rows: cols, cols: rows, ..self.strides }, ..self }
    }
}

/// The length of a side.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    /// The tokens of the chunk.
    Tokens,
    /// Channels.
    Of(usize),
}

/// One of the four factors of a token, by its place in [`ChunkGates::factors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    /// The decay from the chunk's start to the token.
    FromStart,
    /// The decay from the token to the chunk's end.
    ToEnd,
    /// β
    Beta,
    /// β and [`Factor::FromStart`].
    BetaFromStart,
    /// 1
    None,
}

/// Which part of the left side counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProductMask {
    /// All of it.
    All,
    /// On and below the diagonal.
    Lower,
    /// As [`ProductMask::Lower`] of the matrix whose transpose it is.
    LowerTransposed,
}

/// Which part of the result is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// All of it.
    All,
    /// On and below the diagonal; zeros above.
    Lower,
    /// Below the diagonal; zeros elsewhere.
    Below,
}

/// `c = alpha · (a b)`, or added to what `c` holds.
#[derive(Clone, Copy)]
pub(crate) struct ChunkProduct<'a> {
    a: ProductSide<'a>,
    b: ProductSide<'a>,
    c: ProductSide<'a>,
    /// Rows of `a`, columns of `b`, the sum's length.
    sizes: [Size; 3],
    alpha: f32,
    mask: ProductMask,
    keep: Keep,
    square: bool,
    gated: Option<&'a ChunkGates>,
    factors: Option<&'a ChunkGates>,
    of: [Factor; 3],
    rounded: DType,
    add: bool,
}

impl<'a> ChunkProduct<'a> {
    /// `c = a b`.
    pub(crate) fn new(sizes: [Size; 3], [a, b, c]: [ProductSide<'a>; 3]) -> Self {
        ChunkProduct {
            a,
            b,
            c,
            sizes,
            alpha: 1.0,
            mask: ProductMask::All,
            keep: Keep::All,
            square: false,
            gated: None,
            factors: None,
            of: [Factor::None; 3],
            rounded: DType::F32,
            add: false,
        }
    }

    /// Tokens by tokens: `c` has 64 columns, and this part of them is kept.
    pub(crate) fn square(self, keep: Keep) -> Self {
        ChunkProduct { square: true, keep, ..self }
    }

    pub(crate) fn alpha(self, alpha: f32) -> Self {
        ChunkProduct { alpha, ..self }
    }

    /// Only this part of `a` counts.
    pub(crate) fn mask(self, mask: ProductMask) -> Self {
        ChunkProduct { mask, ..self }
    }

    /// The result times the decays between its tokens.
    pub(crate) fn gated(self, gates: &'a ChunkGates) -> Self {
        ChunkProduct { gated: Some(gates), ..self }
    }

    /// The rows of `b`, which are tokens, times a factor, rounded to a storage type.
    pub(crate) fn inner(self, gates: &'a ChunkGates, factor: Factor, rounded: DType) -> Self {
        let [_, m, n] = self.of;
        ChunkProduct { factors: Some(gates), of: [factor, m, n], rounded, ..self }
    }

    /// The rows of `c`, which are tokens, times a factor.
    pub(crate) fn rows(self, gates: &'a ChunkGates, factor: Factor) -> Self {
        let [l, _, n] = self.of;
        ChunkProduct { factors: Some(gates), of: [l, factor, n], ..self }
    }

    /// The columns of `c`, which are tokens, times a factor.
    pub(crate) fn columns(self, gates: &'a ChunkGates, factor: Factor) -> Self {
        let [l, m, _] = self.of;
        ChunkProduct { factors: Some(gates), of: [l, m, factor], ..self }
    }

    /// Added to what `c` holds.
    pub(crate) fn added(self) -> Self {
        ChunkProduct { add: true, ..self }
    }

    /// Launches it.
    pub(crate) fn run(self, chunks: &Chunks) -> Result<()> {
        let [m, n, l] = to_u32s(self.sizes.map(|size| match size {
            Size::Tokens => 0,
            Size::Of(n) => n,
        }))?;
        let tiles = |n: u32| n.div_ceil(64).max(1) as usize;
        let params = Params {
            a: self.a.strides,
            b: self.b.strides,
            c: self.c.strides,
            sizes: [m, n, l],
            chunks: to_u32(chunks.count())?,
            v_heads: to_u32(chunks.v_heads)?,
            alpha: self.alpha,
        };
        let along = |first: u32| u32::from(first == 1);
        let gamma = self.gated.map_or(&chunks.chunks, |gates| &gates.gamma);
        let factors = self.factors.map_or(&chunks.chunks, |gates| &gates.factors);
        chunks.gpu.launch(&Launch {
            kernel: &PRODUCT,
            entry: "main",
            constants: &[
                ("A_ALONG", along(self.a.strides.rows)),
                ("B_ALONG", along(self.b.strides.cols)),
                ("MASK_A", self.mask as u32),
                ("SQUARE", u32::from(self.square)),
                ("LOWER", self.keep as u32),
                ("GAMMA", u32::from(self.gated.is_some())),
                ("FACTOR_L", self.of[0] as u32),
                ("FACTOR_M", self.of[1] as u32),
                ("FACTOR_N", self.of[2] as u32),
                ("ADD", u32::from(self.add)),
            ],
            stored: &[("R", self.rounded)],
            binds: &[&chunks.chunks, self.a.tensor, self.b.tensor, factors, gamma, self.c.tensor].map(Bind::All),
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(chunks.count() * chunks.v_heads * tiles(m) * tiles(n)),
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    a: Strides,
    b: Strides,
    c: Strides,
    sizes: [u32; 3],
    chunks: u32,
    v_heads: u32,
    alpha: f32,
}
