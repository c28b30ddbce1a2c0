// Functions whose built-in forms a driver may compute too roughly.

// 2 to the power of an integer from -149 to 128, in two factors so that neither overflows
fn exp2_whole(n: vec4<f32>) -> vec4<f32> {
    let whole = vec4<i32>(n);
    let half = whole >> vec4<u32>(1u);
    let a = bitcast<vec4<f32>>((half + vec4<i32>(127)) << vec4<u32>(23u));
    let b = bitcast<vec4<f32>>((whole - half + vec4<i32>(127)) << vec4<u32>(23u));
    return a * b;
}

// within 2 units in the last place; NaN stays NaN
fn exp4(x: vec4<f32>) -> vec4<f32> {
    let bounded = clamp(x, vec4<f32>(-105.0), vec4<f32>(89.5));
    let n = round(bounded * 1.44269504);
    // ln 2 in two parts, the first 355/512. In integers, because drivers join two products with n: n times ln 2,
    // rounded
    var r = fma(vec4<f32>(vec4<i32>(n) * 355), vec4<f32>(-0.001953125), bounded);
    r = fma(n, vec4<f32>(2.12194440e-4), r);
    var p = vec4<f32>(1.984127e-4);
    p = fma(p, r, vec4<f32>(1.3888889e-3));
    p = fma(p, r, vec4<f32>(8.333333e-3));
    p = fma(p, r, vec4<f32>(4.1666668e-2));
    p = fma(p, r, vec4<f32>(0.16666667));
    p = fma(p, r, vec4<f32>(0.5));
    p = fma(p, r, vec4<f32>(1.0));
    p = fma(p, r, vec4<f32>(1.0));
    return select(p * exp2_whole(n), x, x != x);
}

fn exp1(x: f32) -> f32 { return exp4(vec4<f32>(x)).x; }

fn sigmoid4(x: vec4<f32>) -> vec4<f32> { return 1.0 / (1.0 + exp4(-x)); }

fn sigmoid1(x: f32) -> f32 { return sigmoid4(vec4<f32>(x)).x; }

// -0 at -infinity, where the product alone would be NaN
fn silu4(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>(-200.0)) * sigmoid4(x); }

struct Silu { value: vec4<f32>, derivative: vec4<f32> }

fn silu_and_derivative4(x: vec4<f32>) -> Silu {
    let e = exp4(-x);
    let s = 1.0 / (1.0 + e);
    // 1 - s as e * s, so that nothing cancels; the bounds keep a factor of 0 from meeting an infinity
    let low = max(x, vec4<f32>(-200.0));
    let rest = min(e, vec4<f32>(3.4028234e38)) * s;
    return Silu(low * s, s * (1.0 + min(low, vec4<f32>(200.0)) * rest));
}

// log(1 + e^x), without overflow
fn softplus4(x: vec4<f32>) -> vec4<f32> {
    // log(1 + e) = 2 atanh(r) with r = e / (2 + e) at most 1/3, where the series converges fast
    let e = exp4(-abs(x));
    let r = e / (e + 2.0);
    let q = r * r;
    var p = vec4<f32>(1.0 / 15.0);
    p = fma(p, q, vec4<f32>(1.0 / 13.0));
    p = fma(p, q, vec4<f32>(1.0 / 11.0));
    p = fma(p, q, vec4<f32>(1.0 / 9.0));
    p = fma(p, q, vec4<f32>(1.0 / 7.0));
    p = fma(p, q, vec4<f32>(0.2));
    p = fma(p, q, vec4<f32>(1.0 / 3.0));
    p = fma(p, q, vec4<f32>(1.0));
    return 2.0 * r * p + max(x, vec4<f32>(0.0));
}

// 1 - erf(z) for z >= 0: the Chebyshev fit `erfcc` of Press et al., Numerical Recipes
fn erfc4(z: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / fma(z, vec4<f32>(0.5), vec4<f32>(1.0));
    var p = vec4<f32>(0.17087277);
    p = fma(p, t, vec4<f32>(-0.82215223));
    p = fma(p, t, vec4<f32>(1.48851587));
    p = fma(p, t, vec4<f32>(-1.13520398));
    p = fma(p, t, vec4<f32>(0.27886807));
    p = fma(p, t, vec4<f32>(-0.18628806));
    p = fma(p, t, vec4<f32>(0.09678418));
    p = fma(p, t, vec4<f32>(0.37409196));
    p = fma(p, t, vec4<f32>(1.00002368));
    p = fma(p, t, vec4<f32>(-1.26551223));
    return t * exp4(p - z * z);
}
