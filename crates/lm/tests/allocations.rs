//! What decoding asks the system's allocator for: nothing. Alone in its file, so that it alone is counted.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::cpu::Cpu;
use alluvium_core::{Device, Result, Tensor};
use alluvium_lm::{Cache, LanguageModel, load};
use alluvium_ops::{Sampling, sample};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The system's allocator, counted where [`COUNTING`] says so.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;
static COUNTING: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    if COUNTING.load(Ordering::Relaxed) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) };
    }
}

/// The likeliest token after these.
fn next(model: &dyn LanguageModel, ids: &[u32], cache: &mut Cache, device: &Device) -> Result<u32> {
    let hidden = model.forward_cached(&Tensor::from_slice(ids, [1, ids.len()], device)?, cache)?;
    let [tokens, width] = [hidden.shape()[1], hidden.shape()[2]];
    let last = hidden.reshape([tokens, width])?.rows(tokens - 1, 1)?;
    let chosen = sample(&model.lm_head().linear(&last)?, &Sampling::default(), &[0.5])?;
    Ok(chosen.ids()?[0])
}

/// Tokens that a model makes, most of them under the count.
fn decode(model: &dyn LanguageModel, device: &Device) -> usize {
    let mut cache = model.cache(1).unwrap();
    // where the threads are: a call from outside takes room in their queue, a block for every few dozen calls
    let tokens = device.run(|| {
        let mut token = next(model, &[1, 2, 3], &mut cache, device).unwrap();
        let mut tokens = vec![token; 100];
        for (step, made) in tokens.iter_mut().enumerate() {
            // the first steps fill the pool with memory of every size
            COUNTING.store(step >= 10, Ordering::Relaxed);
            token = next(model, &[token], &mut cache, device).unwrap();
            *made = token;
        }
        COUNTING.store(false, Ordering::Relaxed);
        tokens
    });
    assert_eq!(cache.offset(), 3 + tokens.len());
    tokens.len()
}

/// Allocations and their bytes in a hundred steps of a model on a device.
fn counted(name: &str, device: &Device) -> [usize; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    let model = load(&folder, device).unwrap().model;
    assert_eq!(decode(model.as_ref(), device), 100);
    [&CALLS, &BYTES].map(|count| count.swap(0, Ordering::Relaxed))
}

#[test]
fn a_decoding_step_allocates_nothing() {
    let alone: Device = Cpu::builder().threads(1).open().unwrap().into();
    for name in ["qwen3_5-f32", "qwen3_5-bf16", "qwen3_5-q4g64"] {
        assert_eq!(counted(name, &alone), [0; 2], "{name}");
        // threads that overlap in a way they never did need a block more, once: far from one a step
        let [calls, bytes] = counted(name, &Device::cpu());
        assert!(calls < 60, "{name}: {calls} allocations of {bytes} bytes");
    }
}
