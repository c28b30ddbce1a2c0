use super::*;

crate::simd! {
    fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        let whole = a.len() - a.len() % S::LANES;
        let mut sum = S::load_partial(&a[whole..]) * S::load_partial(&b[whole..]);
        for i in (0..whole).step_by(S::LANES) {
            sum = S::load(&a[i..]).mul_add(S::load(&b[i..]), sum);
        }
        sum.sum()
    }
    fn apart<S>(x: &[f32], n: &[f32], out: &mut [f32]) {
        for i in 0..x.len() {
            let (x, n) = (S::splat(x[i]), S::splat(n[i]));
            x.scale_by_exp2(n).store_partial(&mut out[i..=i]);
        }
    }
    fn largest<S>(x: &[f32]) -> f32 {
        S::load(x).max(S::splat(-1e30)).max_lane()
    }
    fn unpacked<S>(stream: &[u32], bits: u32, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
            S::from_i32(S::Bits::unpack(stream, i * S::LANES, bits)).store(out);
        }
    }
    fn in_bytes<S>(stream: &[u32], bits: u32, out: &mut [u32]) {
        for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
            let bytes = S::Bits::unpack4(stream, i * 4 * S::LANES, bits).bytes(bits);
            // a byte is exact as a float
            for at in 0..4 {
                let mut lanes = [0.0; 16];
                S::from_i32(bytes.shr(8 * at) & S::Bits::splat(255)).store(&mut lanes);
                out.iter_mut().zip(lanes).for_each(|(out, lane)| *out |= (lane as u32) << (8 * at));
            }
        }
    }
    fn dot_of_bytes<S>(start: i32, codes: &[u32], digits: &[u32], out: &mut [f32]) {
        let table = &std::array::from_fn(|i| 4 * i as u8 + 3);
        let codes = S::Bits::load_partial(codes).table_lookup(table);
        let digits = S::Bits::load_partial(digits);
        let sum = S::Bits::splat(start as u32).dot_bytes(&[codes, codes], &[digits, digits]);
        S::from_i32(sum).store_partial(out);
    }
    fn picked<S>(table: &[f32; 16], at: &[u32], out: &mut [f32]) {
        for (at, out) in at.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            S::gather16(table, S::Bits::load_partial(at)).store_partial(out);
        }
    }
    fn spread<S>(src: &[f32], each: usize, out: &mut [f32]) {
        assert!(src.len() >= S::LANES.div_ceil(each));
        // SAFETY: the assert
        unsafe { S::load_spread(src.as_ptr(), S::spread(each)) }.store(out);
    }
    fn halves<S>(x: &[f16], y: &[bf16], out: &mut [f32]) {
        assert!(x.len() >= S::LANES && y.len() >= S::LANES);
        // SAFETY: the assert
        let (x, y) = unsafe { (S::load_f16(x.as_ptr()), S::load_bf16(y.as_ptr())) };
        x.store(out);
        y.store(&mut out[S::LANES..]);
    }
    fn whole<S>(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            S::from_i32(S::load(x).to_i32() ^ S::Bits::splat(5)).store(out);
        }
    }
    fn four_sums<S>(x: &[f32], out: &mut [f32]) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| S::load(&x[i * S::LANES..]));
        out.copy_from_slice(&S::sums([a, b, c, d]));
        out.iter().zip([a, b, c, d]).for_each(|(sum, x)| assert_eq!(*sum, x.sum()));
    }
    fn shifted<S>(x: &[u32], n: u32, out: &mut [f32]) {
        let x = S::Bits::load_partial(x);
        let low = x.shl(n).shr(n) & S::Bits::splat(0xff);
        S::from_bits(low.shl(23) | S::Bits::splat(1 << 31)).store_partial(out);
    }
}

#[test]
fn every_isa_unpacks_the_same_codes() {
    let stream: Vec<u32> = (0..40u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995).collect();
    for bits in 1..=8u32 {
        let count = 40 * 32 / bits as usize / 32 * 32;
        let bit = |at: usize| stream[at / 32] >> (at % 32) & 1;
        let number = |at: usize| (0..bits as usize).map(|i| bit(at * bits as usize + i) << i).sum::<u32>();
        let want: Vec<f32> = (0..count).map(|at| number(at) as f32).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; count];
            unpacked(isa, &stream[..count * bits as usize / 32], bits, &mut out);
            assert_eq!(out, want, "{isa} {bits}");
        }
    }
}

#[test]
fn four_codes_of_a_stream_become_the_bytes_of_a_lane_even_at_its_end() {
    let stream: Vec<u32> = (0..48u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995).collect();
    for bits in 1..=6u32 {
        let count = 48 * 32 / bits as usize / 64 * 64;
        let bit = |at: usize| stream.get(at / 32).map_or(0, |word| word >> (at % 32) & 1);
        let number = |at: usize| (0..bits as usize).map(|i| bit(at * bits as usize + i) << i).sum::<u32>();
        for (isa, words) in Isa::available().into_iter().flat_map(|l| [(l, 48), (l, 47)]) {
            let mut out = vec![0; count / 4];
            in_bytes(isa, &stream[..words], bits, &mut out);
            for (at, &got) in out.iter().enumerate().filter(|(at, _)| (4 * at + 4) * bits as usize <= 32 * words) {
                let want = (0..4).map(|i| number(4 * at + i) << (8 * i)).sum::<u32>();
                assert_eq!(got, want, "{isa}, {bits} bits, lane {at}");
            }
        }
    }
}

#[test]
fn bytes_are_multiplied_with_their_signs_and_added_up() {
    let codes: [u32; 4] = [0x0f0f_0f0f, 0x0001_0203, 0x0f00_0000, 0x0f0f_0f0f];
    let digits: [u32; 4] = [0x8080_8080, 0x01ff_0280, 0x7f80_8080, 0x7f7f_7f7f];
    let of = |word: u32, i: usize| word.to_le_bytes()[i];
    let product =
        |lane: usize, i: usize| 2 * (4 * i32::from(of(codes[lane], i)) + 3) * i32::from(of(digits[lane], i) as i8);
    for isa in Isa::available() {
        let mut out = [0.0; 4];
        dot_of_bytes(isa, -7, &codes, &digits, &mut out);
        let want: [f32; 4] = std::array::from_fn(|lane| (0..4).map(|i| product(lane, i)).sum::<i32>() as f32 - 7.0);
        assert_eq!(out, want, "{isa}");
    }
}

#[test]
fn a_table_is_read_by_the_lowest_four_bits_and_lanes_repeat() {
    let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
    let at: Vec<u32> = (0..37u32).map(|i| i * 7 + 0xabc0).collect();
    let want: Vec<f32> = at.iter().map(|&at| table[at as usize % 16]).collect();
    for isa in Isa::available() {
        let mut out = vec![0.0; at.len()];
        picked(isa, &table, &at, &mut out);
        assert_eq!(out, want, "{isa}");
        for each in [1, 2, 4, 8, 16, 32] {
            // no more is read than is there
            let (lanes, src) = (isa.lanes(), table[..isa.lanes().div_ceil(each)].to_vec());
            spread(isa, &src, each, &mut out);
            let want: Vec<f32> = (0..lanes).map(|i| src[i / each]).collect();
            assert_eq!(out[..lanes], want, "{isa} {each}");
        }
    }
}

#[test]
fn half_precision_is_read_exactly() {
    let x = [1.5, -0.0, 65_504.0, 6e-8, f32::INFINITY, -2.25, 1e-5, 0.1, 3.0, -7.0, 0.5, 1e-4, -1.0, 2.0, 4.0, 8.0];
    let (small, large) = (x.map(f16::from_f32), x.map(bf16::from_f32));
    for isa in Isa::available() {
        let mut out = [0.0; 32];
        halves(isa, &small, &large, &mut out);
        let lanes = isa.lanes();
        assert_eq!(out[..lanes], small.map(f16::to_f32)[..lanes], "{isa}");
        assert_eq!(out[lanes..2 * lanes], large.map(bf16::to_f32)[..lanes], "{isa}");
    }
}

#[test]
fn integers_are_converted_with_their_signs() {
    let x: Vec<f32> = (-8..8i8).map(|i| f32::from(i) * 1_000_003.0).collect();
    let want: Vec<f32> = x.iter().map(|&x| (x as i32 ^ 5) as f32).collect();
    for isa in Isa::available() {
        let mut out = [0.0; 16];
        whole(isa, &x, &mut out);
        assert_eq!(out[..], want, "{isa}");
    }
}

#[test]
fn four_registers_have_the_sums_that_each_has() {
    for isa in Isa::available() {
        let x: Vec<f32> = (0..64u16).map(|i| (f32::from(i) * 0.7).sin() * 1e3).collect();
        let mut out = [0.0; 4];
        four_sums(isa, &x, &mut out);
        for (x, sum) in x.chunks(isa.lanes()).zip(out) {
            let want: f64 = x.iter().map(|&x| f64::from(x)).sum();
            assert!((f64::from(sum) - want).abs() < 1e-2, "{isa}: {sum} for {want}");
        }
    }
}

#[test]
fn bits_are_shifted_masked_and_read_as_floats() {
    for isa in Isa::available() {
        let mut out = [0.0; 2];
        shifted(isa, &[0xff00_0000 | 127, 0xfe00_0000 | 130], 7, &mut out);
        assert_eq!(out, [-1.0, -8.0], "{isa}");
    }
}

#[test]
fn every_isa_gives_the_same_dot_product_at_every_length() {
    for isa in Isa::available() {
        for n in 0..70u16 {
            let a: Vec<f32> = (0..n).map(f32::from).collect();
            let want: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(isa, &a, &a), want, "{isa} {n}");
        }
    }
}

#[test]
fn scaling_by_a_power_of_two_reaches_denormals_and_infinity() {
    let (x, n) = ([1.5, 1.5, 1.0, 1.9, -1.25], [127.0, 128.0, -149.0, -126.0, 3.0]);
    let want = [1.5 * 2f32.powi(127), f32::INFINITY, f32::from_bits(1), 1.9 * f32::MIN_POSITIVE, -10.0];
    for isa in Isa::available() {
        let mut out = [0.0; 5];
        apart(isa, &x, &n, &mut out);
        assert_eq!(out, want, "{isa}");
    }
}

#[test]
fn the_largest_lane_is_found_wherever_it_is() {
    for isa in Isa::available() {
        for at in 0..isa.lanes() {
            let mut x = [-3.0; 16];
            x[at] = 2.5;
            assert_eq!(largest(isa, &x), 2.5, "{isa} {at}");
        }
    }
}
