//! Outputs and final states.

use super::Problem;
use super::chunk::ChunkTiles;
use crate::common::tasks::{self, Shared};
use crate::common::tile::{Left, Part, Product, product, transpose};
use crate::delta::chunk::{CHUNK, Write, maps, scatter};
use crate::delta::gated_delta_rule::{ChunkStates, GatedDeltaOutput, Grad};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Tensor};

pub(in crate::delta::gated_delta_rule) fn forward(
    cpu: &Cpu,
    args: &Grad,
    keep: ChunkStates,
) -> Result<(GatedDeltaOutput, Option<Tensor>)> {
    let problem = Problem::new(cpu, args)?;
    let ([k, v], state) = (problem.width, problem.state());
    let tasks = problem.sequences.len() * problem.v_heads;
    let mut o = cpu.buffer::<f32>(args.v.elements())?;
    let mut last = cpu.buffer::<f32>(tasks * state)?;
    let mut kept = match keep {
        ChunkStates::Keep => Some(cpu.buffer::<f32>(problem.chunks() * problem.v_heads * state)?),
        ChunkStates::Recompute => None,
    };
    let out = RuleResults {
        o: Shared::new(&mut o),
        last: Shared::new(&mut last),
        kept: kept.as_deref_mut().map(Shared::new),
    };
    let scratch = state + CHUNK * v + ChunkTiles::scratch(problem.width);
    tasks::each(cpu, tasks, scratch, |task, scratch| head(&problem, task, scratch, &out))?;
    let last = cpu.tensor(last, [problem.sequences.len(), problem.v_heads, v, k], DType::F32)?;
    let kept = kept.map(|kept| cpu.tensor(kept, [problem.chunks(), problem.v_heads, v, k], DType::F32)).transpose()?;
    Ok((GatedDeltaOutput { o: cpu.tensor(o, args.v.shape(), args.v.dtype())?, final_state: last }, kept))
}

struct RuleResults<'a> {
    o: Shared<'a>,
    last: Shared<'a>,
    kept: Option<Shared<'a>>,
}

/// One sequence of one value head.
fn head(problem: &Problem<'_>, task: usize, scratch: &mut [f32], out: &RuleResults<'_>) {
    let (sequence, head) = (task / problem.v_heads, task % problem.v_heads);
    let (isa, [k, v], size) = (problem.isa, problem.width, problem.state());
    let (state, scratch) = scratch.split_at_mut(size);
    let (o, scratch) = scratch.split_at_mut(CHUNK * v);
    let mut chunk = ChunkTiles::cut(scratch, problem.width);
    start(problem, task, state);
    for (i, tokens) in problem.chunks_of(sequence).enumerate() {
        if let Some(kept) = &out.kept {
            // SAFETY: each task has its own sequence and head, and so its own states.
            unsafe { kept.part(problem.kept_at(sequence, head) + i * size, size) }.copy_from_slice(state);
        }
        chunk.load(problem, tokens.clone(), head);
        chunk.load_queries(problem, tokens.clone(), head);
        chunk.correct(problem, state);
        let len = tokens.len();
        maps::scale_rows(isa, problem.scale, &chunk.from_start[..len], &mut chunk.q[..len * k]);
        product(isa, &Product::new([len, v, k], Left::rows(chunk.q, k), state, v), o, v);
        let inside = Product::new([len, v, len], Left::rows(chunk.p, CHUNK), chunk.v_new, v).left(Part::Lower);
        product(isa, &inside.onto(1.0), o, v);
        // SAFETY: each task has its own sequence and head, and so its own rows.
        unsafe { scatter(out.o, tokens, [problem.v_heads, head, v], o, Write::Set) };
        chunk.advance(problem, state);
    }
    // SAFETY: each task has its own sequence and head, and so its own state.
    transpose([k, v], state, v, unsafe { out.last.part(task * size, size) }, k);
}

/// The state before the first token, transposed.
pub(super) fn start(problem: &Problem<'_>, task: usize, state: &mut [f32]) {
    let ([k, v], size) = (problem.width, problem.state());
    match &problem.start {
        Some(start) => transpose([v, k], &start[task * size..][..size], k, state, v),
        None => state.fill(0.0),
    }
}
