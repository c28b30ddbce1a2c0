//! What the text of every kernel in use does not show: what is refused, and how bounds, loops and memory come out. That
//! the compiler takes the texts is checked beside the tests, and what they compute on a GPU.

use super::*;

fn translated(text: &str) -> Translated {
    translate(text, ("a test, odd", "main"), true, &Natives::default()).unwrap()
}

fn refused(text: &str) -> String {
    translate(text, ("a test", "main"), true, &Natives::default()).unwrap_err()
}

/// A kernel with this body.
fn with_body(body: &str) -> String {
    format!(
        "struct P {{ n: u32, scale: f32 }}
        var<immediate> p: P;
        @group(0) @binding(3) var<storage, read> x: array<f32>;
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;
        var<workgroup> shared_sums: array<f32, 64>;
        @compute @workgroup_size(64)
        fn main(@builtin(local_invocation_index) lane: u32) {{ {body} }}"
    )
}

#[test]
fn a_kernel_takes_the_bindings_that_it_uses_in_order_and_its_params() {
    let made = translated(&with_body("y[lane] = x[p.n] * p.scale;"));
    assert_eq!((made.bindings, made.params, made.threads, made.writes), (vec![1, 3], 8, 64, 0b10));
    let made = translated(&with_body("y[lane] = 1.0;"));
    assert_eq!((made.bindings, made.params, made.declared_params), (vec![1], 0, 8));
    assert!(!made.text.contains("shared_sums"), "{}", made.text);
}

#[test]
fn only_a_kernel_that_is_not_trusted_checks_bounds_and_clears_shared_memory() {
    let text = with_body("y[lane] = shared_sums[63u - lane];");
    let checked = translate(&text, ("a test", "main"), false, &Natives::default()).unwrap().text;
    assert!(checked.starts_with("#define CHECKED 1\n") && checked.contains("zero_shared(g"), "{checked}");
    let trusted = translated(&text).text;
    assert!(trusted.starts_with("#define CHECKED 0\n") && !trusted.contains("zero_shared(g"), "{trusted}");
}

#[test]
fn continue_jumps_to_what_a_round_ends_with() {
    let body = "for (var i = 0u; i < p.n; i++) { if i == lane { continue; } y[i] = 1.0; }";
    let text = translated(&with_body(body)).text;
    assert!(text.contains("goto next1;") && text.contains("next1:;"), "{text}");
    let plain = translated(&with_body("for (var i = 0u; i < p.n; i++) { y[i] = 1.0; }")).text;
    assert!(!plain.contains("next1"), "{plain}");
}

#[test]
fn floats_arrive_bit_by_bit() {
    let text = translated(&with_body("y[lane] = 0.1;")).text;
    assert!(text.contains("__uint_as_float(0x3dcccccdu)"), "{text}");
}

#[test]
fn what_has_no_translation_is_refused_in_words() {
    let cases = [
        ("@compute @workgroup_size(1) fn other() {}", "it has no entry point main"),
        ("fn main() -> u32 { return 1.0; }", "error:"),
        (
            "enable f16; @group(0) @binding(0) var<storage, read_write> y: array<f16>;
            @compute @workgroup_size(1) fn main() { y[0] = 1.0h; }",
            "it has values of the type",
        ),
        (
            "@group(1) @binding(0) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1) fn main() { y[0] = 1.0; }",
            "it has binding 0 of group 1: only 0 to 63 of group 0",
        ),
        (
            "struct S { a: f32, b: vec3<f32>, c: f32 }
            @group(0) @binding(0) var<storage, read_write> y: array<S>;
            @compute @workgroup_size(1) fn main() { y[0].c = 1.0; }",
            "has another layout in C++: order its fields by size",
        ),
        (
            "@group(0) @binding(0) var<uniform> x: vec4<f32>;
            @group(0) @binding(1) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1) fn main() { y[0] = x.x; }",
            "it has a variable of Uniform",
        ),
    ];
    for (text, want) in cases {
        let why = refused(text);
        assert!(why.contains(want), "{why}");
    }
}

#[test]
fn a_native_body_stands_in_for_the_function_of_its_name_alone() {
    let text = "fn twice(x: f32) -> f32 { return x + x; }
        fn thrice(x: f32) -> f32 { return twice(x) + x; }\n"
        .to_owned()
        + &with_body("y[lane] = thrice(x[lane]);");
    let bodies = vec![("twice".to_owned(), "return N * a0;"), ("absent".to_owned(), "return 0;")];
    let natives = Natives { bodies, constants: vec![("N", 2)] };
    let made = translate(&text, ("a test", "main"), true, &natives).unwrap().text;
    assert!(
        made.contains("static constexpr u32 N = 2u;") && made.contains("twice(float a0) {\n        return N * a0;")
    );
    assert!(!made.contains("absent") && made.contains("thrice(float a0) {"), "{made}");
    let without = translate(&text, ("a test", "main"), true, &Natives::default()).unwrap().text;
    assert!(!without.contains("constexpr u32 N") && !without.contains("N * a0"), "{without}");
}
