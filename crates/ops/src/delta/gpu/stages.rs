//! The stages of the chunked gated delta rule and their gradients, from which the public stages and the whole rule are
//! made. Gradients to keys are of value heads: the caller adds up those that read the same key head.

use super::{
    ChunkGates, ChunkProduct, Chunks, Direction, Factor, Keep, ProductMask, ProductSide, ROWS, RowParams, Size,
    StateScan, Weight,
};
use crate::common::gpu::to_u32;
use crate::delta::chunk::{CHUNK, Write};
use alluvium_core::gpu::{Bind, Groups, Launch};
use alluvium_core::{DType, Result, Tensor};

const TOKENS: Size = Size::Tokens;

/// The values of a token and head.
pub(crate) fn width(x: &Tensor) -> usize {
    x.shape().last()
}

impl Chunks {
    fn side<'a>(&self, x: &'a Tensor) -> ProductSide<'a> {
        ProductSide::tokens(self, x, width(x))
    }

    fn square<'a>(&self, x: &'a Tensor) -> ProductSide<'a> {
        ProductSide::tokens(self, x, CHUNK)
    }

    /// `x yᵀ` of each chunk, on and below the diagonal.
    pub(crate) fn scores(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let c = self.empty(CHUNK)?;
        let sides = [self.side(x), self.side(y).t(), self.square(&c)];
        ChunkProduct::new([TOKENS, TOKENS, Size::Of(width(x))], sides).square(Keep::Lower).run(self)?;
        Ok(c)
    }

    /// `L_ij = β_i Γ_ij (k_i · k_j)` below the diagonal.
    pub(crate) fn kkt(&self, k: &Tensor, gates: &ChunkGates) -> Result<Tensor> {
        let l = self.empty(CHUNK)?;
        let sides = [self.side(k), self.side(k).t(), self.square(&l)];
        let product = ChunkProduct::new([TOKENS, TOKENS, Size::Of(width(k))], sides);
        product.square(Keep::Below).gated(gates).rows(gates, Factor::Beta).run(self)?;
        Ok(l)
    }

    /// Of `M = Γ ⊙ dL`: `dk`.
    pub(crate) fn kkt_gradient_of_keys(&self, k: &Tensor, gates: &ChunkGates, m: &Tensor) -> Result<Tensor> {
        let dk = self.empty(width(k))?;
        let sizes = [TOKENS, Size::Of(width(k)), TOKENS];
        let own = ChunkProduct::new(sizes, [self.square(m), self.side(k), self.side(&dk)]);
        own.rows(gates, Factor::Beta).run(self)?;
        let others = ChunkProduct::new(sizes, [self.square(m).t(), self.side(k), self.side(&dk)]);
        others.inner(gates, Factor::Beta, DType::F32).added().run(self)?;
        Ok(dk)
    }

    /// Of `M = Γ ⊙ dL` and the keys' products `kk`: `dβ` and the gradient of the running sums of `g`.
    pub(crate) fn kkt_gradient_of_gates(&self, gates: &ChunkGates, m: &Tensor, kk: &Tensor) -> Result<[Tensor; 2]> {
        self.row_sums(m, kk, gates, Weight::Beta)
    }

    /// `dL = −Aᵀ dA Aᵀ` below the diagonal; gated, it is `Γ ⊙ dL`.
    pub(crate) fn solve_gradient(&self, a: &Tensor, da: &Tensor, gates: Option<&ChunkGates>) -> Result<Tensor> {
        let (x, dl) = (self.empty(CHUNK)?, self.empty(CHUNK)?);
        let sizes = [TOKENS; 3];
        ChunkProduct::new(sizes, [self.square(a).t(), self.square(da), self.square(&x)]).square(Keep::All).run(self)?;
        let product = ChunkProduct::new(sizes, [self.square(&x), self.square(a).t(), self.square(&dl)]);
        let product = product.square(Keep::Below).alpha(-1.0);
        gates.map_or(product, |gates| product.gated(gates)).run(self)?;
        Ok(dl)
    }

    /// `A · round(factor ⊙ x)`.
    pub(crate) fn wy_product(
        &self,
        a: &Tensor,
        x: &Tensor,
        gates: &ChunkGates,
        factor: Factor,
        round: DType,
    ) -> Result<Tensor> {
        let y = self.empty(width(x))?;
        let product =
            ChunkProduct::new([TOKENS, Size::Of(width(x)), TOKENS], [self.square(a), self.side(x), self.side(&y)]);
        product.mask(ProductMask::Lower).inner(gates, factor, round).run(self)?;
        Ok(y)
    }

    /// Of `y = A (factor ⊙ x)`: `dx`, and `(Aᵀ dy) · x` of each token. `da` is set, or added to.
    pub(crate) fn wy_product_backward(&self, of: &WyProduct<'_>, da: &Tensor, write: Write) -> Result<[Tensor; 2]> {
        let WyProduct { a, x, dy, gates, factor } = *of;
        let dx = self.empty(width(x))?;
        let back = ChunkProduct::new(
            [TOKENS, Size::Of(width(x)), TOKENS],
            [self.square(a).t(), self.side(dy), self.side(&dx)],
        );
        back.mask(ProductMask::LowerTransposed).run(self)?;
        let dots = self.dots(&dx, x, gates, factor)?;
        let outer =
            ChunkProduct::new([TOKENS, TOKENS, Size::Of(width(x))], [self.side(dy), self.side(x).t(), self.square(da)]);
        let outer = outer.square(Keep::Lower).columns(gates, factor);
        if write == Write::Add { outer.added() } else { outer }.run(self)?;
        Ok([dx, dots])
    }

    /// `dβ` and `dg` from what [`Chunks::wy_product_backward`] gives for the values and the keys.
    pub(crate) fn write_gates(&self, values: &Tensor, keys: &Tensor, gates: &ChunkGates) -> Result<[Tensor; 2]> {
        let [dbeta, dg] = [self.empty(1)?, self.empty(1)?];
        let n = self.tokens * self.v_heads;
        let params = RowParams { rows: to_u32(n)?, width: 1, v_heads: to_u32(self.v_heads)?, share: 1 };
        self.gpu().launch(&Launch {
            kernel: &ROWS,
            entry: "write_gates",
            constants: &[("SCALE", 4)],
            stored: &[],
            binds: &[&dbeta, keys, &gates.factors, &dg, values].map(Bind::All),
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(n.div_ceil(256)),
        })?;
        Ok([dbeta, dg])
    }

    /// The outputs from the states at the starts of the chunks.
    pub(crate) fn output(&self, of: &Outputs<'_>) -> Result<Tensor> {
        let Outputs { q, k, v_new, h, gates, scale } = *of;
        let (o, p) = (self.empty(width(v_new))?, self.empty(CHUNK)?);
        let sizes = [TOKENS, TOKENS, Size::Of(width(q))];
        let inside = ChunkProduct::new(sizes, [self.side(q), self.side(k).t(), self.square(&p)]);
        inside.square(Keep::Lower).gated(gates).run(self)?;
        let sizes = [TOKENS, Size::Of(width(v_new)), Size::Of(width(q))];
        let before = ChunkProduct::new(sizes, [self.side(q), ProductSide::state(h).t(), self.side(&o)]);
        before.alpha(scale).rows(gates, Factor::FromStart).run(self)?;
        let sizes = [TOKENS, Size::Of(width(v_new)), TOKENS];
        ChunkProduct::new(sizes, [self.square(&p), self.side(v_new), self.side(&o)]).alpha(scale).added().run(self)?;
        Ok(o)
    }

    /// The gradients of [`Chunks::output`]; `dq` and `dk` are whole where they are needed.
    pub(crate) fn output_gradient(&self, of: &Outputs<'_>, dy: &Tensor, need: [bool; 2]) -> Result<OutputGradient> {
        let Outputs { q, k, v_new, h, gates, scale } = *of;
        let (keys, values) = (Size::Of(width(q)), Size::Of(width(v_new)));
        let dp = self.empty(CHUNK)?;
        let scores =
            ChunkProduct::new([TOKENS, TOKENS, values], [self.side(dy), self.side(v_new).t(), self.square(&dp)]);
        scores.square(Keep::Lower).gated(gates).alpha(scale).run(self)?;
        let qk = self.scores(q, k)?;
        let p = self.gated(&qk, &gates.gamma, Keep::Lower)?;
        let dv_new = self.empty(width(v_new))?;
        let sides = [self.square(&p).t(), self.side(dy), self.side(&dv_new)];
        ChunkProduct::new([TOKENS, values, TOKENS], sides).alpha(scale).run(self)?;

        let dq = self.empty(width(q))?;
        let before = ChunkProduct::new([TOKENS, keys, values], [self.side(dy), ProductSide::state(h), self.side(&dq)]);
        before.alpha(scale).rows(gates, Factor::FromStart).run(self)?;
        let from_start = self.dots(&dq, q, gates, Factor::None)?;
        let sizes = [TOKENS, keys, TOKENS];
        if need[0] {
            ChunkProduct::new(sizes, [self.square(&dp), self.side(k), self.side(&dq)]).added().run(self)?;
        }
        let dk = self.empty(if need[1] { width(k) } else { 1 })?;
        if need[1] {
            ChunkProduct::new(sizes, [self.square(&dp).t(), self.side(q), self.side(&dk)]).run(self)?;
        }

        let dh = self.empty_states(width(v_new), width(k))?;
        let states =
            ChunkProduct::new([values, keys, TOKENS], [self.side(dy).t(), self.side(q), ProductSide::state(&dh)]);
        states.alpha(scale).inner(gates, Factor::FromStart, DType::F32).run(self)?;
        Ok(OutputGradient { dq, dk, dv_new, dh, dp, qk, from_start })
    }

    /// The gradients of the passage of the states. `dh` joins at the starts of the chunks and is overwritten with the
    /// gradients at their ends; `last` is that of the state after the last token before, and of the first state after.
    pub(crate) fn state_gradient(&self, of: &States<'_>, dy: &StateSeeds<'_>) -> Result<StateGradient> {
        let States { k, w, v_new, h, gates } = *of;
        let StateSeeds { dv_new, dh, last } = *dy;
        let passage = StateScan { way: Direction::Back, left: k, right: w, x: dv_new, states: dh, last };
        let du = self.pass(&passage, gates)?;
        let (keys, values) = (Size::Of(width(k)), Size::Of(width(v_new)));
        let dw = self.empty(width(w))?;
        ChunkProduct::new([TOKENS, keys, values], [self.side(&du), ProductSide::state(h), self.side(&dw)])
            .alpha(-1.0)
            .run(self)?;
        let dk = self.empty(width(k))?;
        let product =
            ChunkProduct::new([TOKENS, keys, values], [self.side(v_new), ProductSide::state(dh), self.side(&dk)]);
        product.rows(gates, Factor::ToEnd).run(self)?;
        let to_end = self.dots(&dk, k, gates, Factor::None)?;
        Ok(StateGradient { du, dw, dk, to_end })
    }
}

/// The arguments of [`Chunks::wy_product_backward`].
#[derive(Clone, Copy)]
pub(crate) struct WyProduct<'a> {
    pub(crate) a: &'a Tensor,
    pub(crate) x: &'a Tensor,
    pub(crate) dy: &'a Tensor,
    pub(crate) gates: &'a ChunkGates,
    pub(crate) factor: Factor,
}

/// The inputs of the outputs.
#[derive(Clone, Copy)]
pub(crate) struct Outputs<'a> {
    pub(crate) q: &'a Tensor,
    pub(crate) k: &'a Tensor,
    pub(crate) v_new: &'a Tensor,
    pub(crate) h: &'a Tensor,
    pub(crate) gates: &'a ChunkGates,
    pub(crate) scale: f32,
}

/// The gradients to what outputs are made of.
pub(crate) struct OutputGradient {
    pub(crate) dq: Tensor,
    pub(crate) dk: Tensor,
    pub(crate) dv_new: Tensor,
    pub(crate) dh: Tensor,
    /// Of the gated products of queries and keys, and these without the gate: their product is the gradient of the
    /// exponents of the decays from token to token.
    pub(crate) dp: Tensor,
    pub(crate) qk: Tensor,
    /// The gradient of the exponents of the decays from the chunk's start.
    pub(crate) from_start: Tensor,
}

/// The inputs of the state scan, and its results.
#[derive(Clone, Copy)]
pub(crate) struct States<'a> {
    pub(crate) k: &'a Tensor,
    pub(crate) w: &'a Tensor,
    pub(crate) v_new: &'a Tensor,
    pub(crate) h: &'a Tensor,
    pub(crate) gates: &'a ChunkGates,
}

/// Gradients of what the passage of the states gives.
#[derive(Clone, Copy)]
pub(crate) struct StateSeeds<'a> {
    pub(crate) dv_new: &'a Tensor,
    pub(crate) dh: &'a Tensor,
    pub(crate) last: &'a Tensor,
}

/// Gradients to what the states are made of.
pub(crate) struct StateGradient {
    pub(crate) du: Tensor,
    pub(crate) dw: Tensor,
    pub(crate) dk: Tensor,
    /// The gradient of the exponents of the decays to the chunk's end.
    pub(crate) to_end: Tensor,
}
