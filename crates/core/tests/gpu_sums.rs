//! Sums of gradients of different dtypes on a GPU have the bits of the CPU's.
#![allow(clippy::unwrap_used)]

use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Device, Tensor};
use half::bf16;

/// Data of an odd size in a dtype.
fn data(dtype: DType, device: &Device) -> Tensor {
    let data: Vec<f32> = (0..1_003).map(|i| 1.0 + i as f32 / 77.0).collect();
    match dtype {
        DType::F32 => Tensor::from_slice(&data, [17, 59], device).unwrap(),
        _ => {
            let data: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
            Tensor::from_slice(&data, [17, 59], device).unwrap()
        }
    }
}

#[test]
fn a_sum_is_f32_where_an_addend_is_and_rounded_once_elsewhere() {
    let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap().map(Device::from) else { return };
    for (a, b) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32), (DType::BF16, DType::BF16)] {
        let want = data(a, &Device::cpu()).accumulate(&data(b, &Device::cpu())).unwrap();
        let kept = data(a, &gpu);
        for got in [data(a, &gpu).accumulate(&data(b, &gpu)), kept.clone().accumulate(&data(b, &gpu))] {
            let got = got.unwrap();
            assert_eq!((got.dtype(), got.to_bytes().unwrap()), (want.dtype(), want.to_bytes().unwrap()));
        }
        assert_eq!(kept.to_bytes().unwrap(), data(a, &Device::cpu()).to_bytes().unwrap());
    }
}
