use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_ops::check::Inputs;
use alluvium_ops::{OPS, *};
use std::time::Instant;
fn med(mut f: impl FnMut(), n: usize) -> f64 {
    let mut t: Vec<f64> = (0..n)
        .map(|_| {
            let s = Instant::now();
            f();
            s.elapsed().as_secs_f64()
        })
        .collect();
    t.sort_by(f64::total_cmp);
    t[n / 2]
}
fn main() {
    let which = std::env::args().nth(1).unwrap();
    let device = Device::cpu();
    if which == "adamw" {
        let n = 1 << 24;
        let mk = || Tensor::full([n], 0.5, &device).unwrap();
        let g = mk();
        let mut st = Some(AdamWState { p: mk(), m: mk(), v: mk() });
        let t = med(
            || {
                let s = st.take().unwrap();
                st = Some(adamw(s.p, &g, s.m, s.v, &AdamW::default()).unwrap());
            },
            15,
        );
        println!("adamw {:.2} ms {:.1} GB/s", t * 1e3, 28.0 * n as f64 / t / 1e9);
        let (a, mut b) = (vec![1f32; n], vec![2f32; n]);
        let t = med(|| device_copy(&device, &a, &mut b), 15);
        println!("copy {:.2} ms {:.1} GB/s", t * 1e3, 8.0 * n as f64 / t / 1e9);
        return;
    }
    for op in OPS.iter().filter(|o| o.name() == which) {
        for case in op.bench {
            let inputs = Inputs::new(op, case, DType::F32, &device).unwrap();
            let cost = (op.cost)(&inputs.tensors.dims);
            let f = med(
                || {
                    (op.run)(&inputs.tensors).unwrap();
                },
                5,
            );
            print!(
                "{which} {}: forward {:.2} ms {:.1} GB/s {:.1} GF/s",
                case.name,
                f * 1e3,
                cost.bytes as f64 / f / 1e9,
                cost.flops as f64 / f / 1e9
            );
            if op.differentiable() {
                let b = med(
                    || {
                        let tape = Tape::new();
                        let args = inputs
                            .tensors
                            .args
                            .iter()
                            .map(|(n, x)| {
                                (*n, x.as_ref().map(|x| if x.dtype().is_float() { tape.watch(x) } else { x.clone() }))
                            })
                            .collect();
                        let given = Given { args, dims: inputs.tensors.dims.clone(), options: inputs.tensors.options };
                        let y = (op.run)(&given).unwrap();
                        let dy: Vec<Tensor> =
                            y.iter().map(|y| Tensor::full(y.shape(), 0.5, &device).unwrap()).collect();
                        tape.backward(&y.iter().zip(&dy).collect::<Vec<_>>()).unwrap();
                    },
                    5,
                );
                print!("; both {:.2} ms {:.1} GF/s", b * 1e3, (cost.flops + cost.backward_flops) as f64 / b / 1e9);
            }
            println!();
        }
    }
}
fn device_copy(device: &Device, a: &[f32], b: &mut [f32]) {
    use rayon::prelude::*;
    let Device::Cpu(cpu) = device;
    cpu.run(|| b.par_chunks_mut(1 << 18).zip(a.par_chunks(1 << 18)).for_each(|(b, a)| b.copy_from_slice(a)));
}
