//! Alluvium's side of `bench/peers/compare_speed.py`: `bench_worker MODEL_DIR [PROMPT TEXT]` reads the name of a case from
//! each line of standard input and answers with a line of JSON, seconds by pass. PROMPT and TEXT are the tokens of `generate`.

use alluvium::core::{Error, rng::Rng};
use alluvium::lm::models::qwen3_5::{RopeParameters, Sizes};
use alluvium::lm::{Batch, Checkpointing, GenerateOptions, LanguageModel, generate, initialize, load};
use alluvium::ops::check::{Zeros, check};
use alluvium::ops::{AdamW, CrossEntropyArgs, Reduction, Sampling, Transpose, adamw, bench, cross_entropy, matmul};
use alluvium::train::{Optimizer, OptimizerConfig};
use alluvium::{DType, Device, Result, Tape, Tensor};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time for one measurement.
const PATIENCE: Duration = Duration::from_millis(500);
/// Cases of the list: the operation and which of its sizes.
const OPS: &[(&str, &str)] = &[
    ("rms_norm", "prefill 4k"),
    ("silu", "8 million"),
    ("swiglu", "8 million"),
    ("causal_conv1d", "prefill 4k, no activation"),
    ("gated_delta_rule", "T 1024, 8 heads of 128"),
    ("attention", "2k tokens, 8 heads of 64"),
];

/// Seconds by pass.
type Times = BTreeMap<String, f64>;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).map(PathBuf::from).ok_or("bench_worker MODEL_DIR [PROMPT TEXT]")?;
    let tokens = |at, default| std::env::args().nth(at).map_or(Ok(default), |n| n.parse());
    let (prompt, text) = (tokens(2, 512)?, tokens(3, 64)?);
    let device = Device::cpu();
    let mut checked = BTreeSet::new();
    let mut training = None;
    for line in std::io::stdin().lock().lines() {
        let name = line?;
        let times = match name.as_str() {
            "" => Times::new(),
            "matmul" => products(&device)?,
            "adamw" => Times::from([("forward".to_owned(), update(&device)?)]),
            "training" => {
                let run = training.get_or_insert(Training::new(&device)?);
                Times::from([("step".to_owned(), median(|| run.step(&device))?)])
            }
            "generate" => generation(&model, [prompt, text], &device)?,
            "read" => Times::from([("a byte".to_owned(), reading()?)]),
            name => operation(name, &mut checked, &device)?,
        };
        println!("{}", json!(times));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// As `alluvium bench` does it, which refuses an operation whose check is red.
fn operation(name: &str, checked: &mut BTreeSet<String>, device: &Device) -> Result<Times> {
    let found = OPS.iter().find(|(op, _)| *op == name);
    let op = found.and_then(|(op, _)| alluvium::ops::find(op));
    let case = found.and_then(|(_, case)| op?.bench.iter().find(|c| c.name == *case));
    let (Some(op), Some(case)) = (op, case) else {
        return Err(Error::value("bench", format!("there is no case `{name}`")));
    };
    if checked.insert(name.to_owned()) {
        for case in op.cases {
            if let Some(fault) = check(op, case, DType::F32, device, Zeros::MustFail)?.faults.first() {
                return Err(Error::value("bench", format!("{name} is not timed, its check is red: {fault}")));
            }
        }
    }
    let (forward, both) = bench::time(op, case, DType::F32, device)?;
    let mut times = Times::from([("forward".to_owned(), forward.seconds)]);
    times.extend(both.map(|both| ("forward+backward".to_owned(), both.seconds)));
    Ok(times)
}

/// `M × N × K`: a square, and the three products of a projection in training.
fn products(device: &Device) -> Result<Times> {
    let mut times = Times::new();
    for (m, n, k) in [(1024, 1024, 1024), (1024, 256, 1024), (1024, 1024, 256)] {
        for (how, transpose) in [("NN", Transpose::Neither), ("NT", Transpose::Right), ("TN", Transpose::Left)] {
            let a = normal(if how == "TN" { [k, m] } else { [m, k] }, device)?;
            let b = normal(if how == "NT" { [n, k] } else { [k, n] }, device)?;
            times.insert(format!("{how} {m}x{n}x{k}"), median(|| matmul(&a, &b, transpose).map(drop))?);
        }
    }
    Ok(times)
}

fn normal(shape: [usize; 2], device: &Device) -> Result<Tensor> {
    let mut rng = Rng::new(0, "bench");
    let data: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.normal() as f32).collect();
    Tensor::from_slice(&data, shape, device)
}

/// A step of AdamW over 16 M parameters, which nobody else holds: in place, as in training.
fn update(device: &Device) -> Result<f64> {
    let side = 1 << 12;
    let zeros = || Tensor::zeros([side, side], DType::F32, device);
    let (gradient, mut state) =
        (normal([side, side], device)?, Some((normal([side, side], device)?, zeros()?, zeros()?)));
    median(|| {
        let (p, m, v) = state.take().ok_or_else(|| Error::value("bench", "an earlier step failed"))?;
        let next = adamw(p, &gradient, m, v, &ADAMW)?;
        state = Some((next.p, next.m, next.v));
        Ok(())
    })
}

const ADAMW: AdamW = AdamW {
    learning_rate: 1e-3,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 7,
    bias_correction: true,
};

/// A hybrid of 4 layers x 256 that trains on 4 rows of 256 tokens.
struct Training {
    model: Box<dyn LanguageModel>,
    optimizer: Optimizer,
    ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    steps: u64,
}

const ROWS: usize = 4;
const TOKENS: usize = 256;
const WORDS: usize = 1024;

impl Training {
    fn new(device: &Device) -> Result<Self> {
        let sizes = Sizes {
            hidden_size: 256,
            intermediate_size: 768,
            num_hidden_layers: 4,
            full_attention_interval: 4,
            layer_types: None,
            attention_bias: false,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 64,
            linear_num_key_heads: 2,
            linear_num_value_heads: 4,
            linear_key_head_dim: 64,
            linear_value_head_dim: 64,
            linear_conv_kernel_dim: 4,
            vocab_size: WORDS,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            rope_parameters: RopeParameters { rope_theta: 1e7, ..RopeParameters::default() },
            mixture: Default::default(),
        };
        let mut rng = Rng::new(0, "ids");
        let rows: Vec<Vec<u32>> =
            (0..ROWS).map(|_| (0..=TOKENS).map(|_| (rng.uniform() * WORDS as f64) as u32).collect()).collect();
        let flat = |from: usize| rows.iter().flat_map(|row| row[from..from + TOKENS].to_vec()).collect::<Vec<u32>>();
        let positions: Vec<u32> = (0..ROWS).flat_map(|_| 0..TOKENS as u32).collect();
        Ok(Training {
            model: initialize(&sizes.config(0)?, 0, device)?,
            optimizer: Optimizer::new(OptimizerConfig { beta2: 0.999, ..OptimizerConfig::default() }),
            ids: Tensor::from_slice(&flat(0), [ROWS, TOKENS], device)?,
            positions: Tensor::from_slice(&positions, [ROWS, TOKENS], device)?,
            targets: Tensor::from_slice(&flat(1), [ROWS * TOKENS], device)?,
            steps: 0,
        })
    }

    fn step(&mut self, device: &Device) -> Result<()> {
        let Training { model, optimizer, ids, positions, targets, steps } = self;
        let tape = Tape::new();
        model.visit_mut("", &mut |_, parameter| *parameter = tape.watch(parameter));
        let mut gradients = device.run(|| {
            let hidden = model.forward(&Batch { ids, positions, cu_seqlens: None }, Checkpointing::None)?;
            let x = hidden.reshape([ROWS * TOKENS, hidden.shape().last()])?;
            let w = model.lm_head().dense()?;
            let loss = CrossEntropyArgs {
                x: &x,
                w,
                targets,
                ignore_index: None,
                reduction: Reduction::Mean,
                z_loss: 0.0,
                chunk: ROWS * TOKENS,
            };
            cross_entropy(loss)?.backward()
        })?;
        let mut by_name = BTreeMap::new();
        model.visit("", &mut |name, parameter| by_name.extend(gradients.take(parameter).map(|g| (name, g))));
        drop((tape, gradients));
        *steps += 1;
        device.run(|| optimizer.step(model.as_mut(), &mut by_name, 1e-3, *steps))
    }
}

/// A prompt, and text after a prompt of 8: the median of 5 each.
fn generation(folder: &Path, [prompt_tokens, text_tokens]: [usize; 2], device: &Device) -> Result<Times> {
    let loaded = load(folder, device)?;
    let tokenizer = loaded.tokenizer.ok_or_else(|| Error::value("bench", "the folder has no tokenizer.json"))?;
    let prompt = tokenizer.encode("the gated delta rule ")?.repeat(prompt_tokens / 5 + 2);
    let mut times = Times::new();
    for (what, length, max_tokens) in [("prefill", prompt_tokens, 1), ("decode, a token", 8, text_tokens)] {
        let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let options = GenerateOptions { max_tokens, sampling, ..GenerateOptions::default() };
        let mut seconds = Vec::new();
        for _ in 0..6 {
            let made = generate(loaded.model.as_ref(), Some(&tokenizer), &prompt[..length], &options)?;
            seconds.push(match max_tokens {
                1 => made.prefill_seconds,
                _ => made.decode_seconds / (made.tokens.len() - 1).max(1) as f64,
            });
        }
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        let what = if max_tokens == 1 { format!("{what} {length}") } else { what.to_owned() };
        times.insert(what, seconds[seconds.len() / 2]);
    }
    Ok(times)
}

/// Seconds to read a byte of memory that no cache holds, on all cores.
fn reading() -> Result<f64> {
    let words = vec![1u64; 1 << 26];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let time = median(|| {
        std::thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(cores)) {
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for part in part.chunks_exact(32) {
                        sums.iter_mut().zip(part).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
                    }
                    std::hint::black_box(sums)
                });
            }
        });
        Ok(())
    })?;
    Ok(time / (8 * words.len()) as f64)
}

/// The median time of repeats, after one that warms up.
fn median(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (started.elapsed() < PATIENCE && times.len() < 1000) {
        let from = Instant::now();
        work()?;
        times.push(from.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
