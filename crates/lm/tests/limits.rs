//! Limits of time and memory that hold against hostile files. Alone in its file and in one test, because its allocator
//! counts the memory of the whole process.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_lm::ChatTemplate;
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches none of its memory
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise is the system's
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is the system's
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Doubles a value in a loop.
fn doubled(first: &str, next: &str) -> String {
    format!(
        "{{% set ns = namespace(x={first}) %}}{{% for i in range(64) %}}{{% set ns.x = {next} %}}{{% endfor %}}{{{{ ns.x }}}}"
    )
}

/// A long string, made under all limits.
const LONG: &str = "{% set s = 'ab' * 500000 %}";

fn bombs() -> Vec<String> {
    [doublings(), repetitions(), others()].concat()
}

/// Values that double in a loop.
fn doublings() -> Vec<String> {
    [
        ("'xx'", "ns.x ~ ns.x"),
        ("'xx'", "ns.x + ns.x"),
        ("'xx'", "ns.x * 2"),
        ("'xx'", "2 * ns.x"),
        ("[1]", "ns.x + ns.x"),
        ("[1]", "ns.x * 3"),
        ("[1]", "[ns.x, ns.x]"),
        ("'xx'", "ns.x.replace('x', 'xx')"),
        ("'xx'", "ns.x | replace('x', 'xx')"),
        ("'xx'", "[ns.x, ns.x] | join"),
        ("'xx'", "ns.x.join([ns.x, ns.x])"),
        ("'xx'", "[ns.x, ns.x] | tojson"),
        ("'xx'", "[ns.x, ns.x] | string"),
        ("'xx'", "'%s%s' % (ns.x, ns.x)"),
        ("'xx'", "'%s%s' | format(ns.x, ns.x)"),
        ("'xx'", "'{}{}'.format(ns.x, ns.x)"),
        ("'x\\n'", "(ns.x ~ ns.x) | indent(8)"),
        ("[1]", "ns.x | batch(1) | list + ns.x"),
        ("[1]", "(ns.x, ns.x)"),
        ("{'a': 1}", "{'a': ns.x, 'b': ns.x}"),
        ("'<'", "(ns.x ~ ns.x) | escape"),
        ("1.5", "ns.x | string ~ ns.x"),
        ("'x'", "ns.x.center(ns.x | length * 2)"),
        ("'x'", "ns.x.ljust(ns.x | length * 2, 'é')"),
        ("'x'", "(ns.x ~ ns.x).upper().split('')"),
    ]
    .map(|(first, next)| doubled(first, next))
    .to_vec()
}

/// Work on a long string or list, many times.
fn repetitions() -> Vec<String> {
    let repeated = |body: &str| format!("{LONG}{{% for i in range(100000) %}}{body}{{% endfor %}}");
    [
        "{{ s.find('c') }}",
        "{{ s.count('c') }}",
        "{{ s.rfind('c') }}",
        "{{ s.split('b') | length }}",
        "{{ s.replace('c', 'd') | length }}",
        "{{ 'c' in s }}",
        "{% set t = s ~ 'c' %}{{ s == t }}",
        "{% set t = s ~ 'c' %}{{ t > s }}",
        "{{ s | length }}",
        "{{ s[::-1] | length }}",
        "{{ s[5] }}",
        "{{ s.strip('abc') }}",
        "{{ s | trim | upper | lower | title | length }}",
        "{{ s | list | length }}",
        "{{ s | wordcount }}",
        "{{ s | tojson | length }}",
        "{{ s.isalpha() }}",
        "{{ s is lower }}",
        "{{ s.startswith('abab') }}",
        "{{ s | sort | length }}",
        "{{ s | unique | length }}",
        "{{ s | reverse | length }}",
        "{{ s.partition('c') | length }}",
        "{{ s.splitlines() | length }}",
        "{{ range(100000) | list | sort | sum }}",
        "{{ range(100000) | map('string') | join | length }}",
        "{{ range(100000) | select('odd') | list | length }}",
        "{{ range(100000) | unique | list | length }}",
        "{{ 100001 in range(100000) }}",
    ]
    .map(repeated)
    .to_vec()
}

/// Nested loops, recursion, huge sizes.
fn others() -> Vec<String> {
    [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
            "{% for a in range(1000000000) %}{% endfor %}",
            "{{ range(1000000000) | list | length }}",
            "{{ 'a' * 10 ** 9 }}",
            "{{ ['a'] * 10 ** 9 }}",
            "{{ 10 ** 10 ** 10 }}",
            "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = d(ns.x) %}{% endfor %}",
            "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace(x={}) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
            "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
            "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
            "{{ 'a'.center(10 ** 12) }}",
            "{{ '%s' * 100000 % 'a' }}",
            "{{ [1] | batch(10 ** 12, 1) }}",
            "{{ [1] | slice(10 ** 12) }}",
            "{{ 'a' | indent(10 ** 9) }}",
            "{{ range(100000) | groupby('x') | list * 100000 }}",
            "{% for i in range(100000) %}{{ strftime_now('%A' * 100000) | length }}{% endfor %}",
        ]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_hostile_template_ends_with_an_error_within_two_seconds_and_256_mib() {
    let mut survivors = Vec::new();
    for bomb in bombs() {
        let before = HELD.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = Instant::now();
        let result = ChatTemplate::new(&bomb).and_then(|template| template.render(&json!({})));
        let (seconds, peak) = (start.elapsed().as_secs_f64(), PEAK.load(Relaxed).saturating_sub(before));
        let left = HELD.load(Relaxed).saturating_sub(before);
        if result.is_ok() || seconds > 2.0 || peak > 256 << 20 || left > 1 << 20 {
            let end = result.map_or_else(|error| error.to_string(), |text| format!("{} bytes", text.len()));
            survivors.push(format!("{seconds:.2} s, {} MiB, {left} left: {bomb}: {end:.80}", peak >> 20));
        }
    }
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
    a_long_chat_is_rendered();
    a_header_takes_little_memory_and_time();
}

/// A header of 24 MB: less than 8 bytes of memory for each of its bytes, and a description linear in its tensors.
fn a_header_takes_little_memory_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut header = String::from("{");
    for i in 0..300_000 {
        let comma = if i > 0 { "," } else { "" };
        let part = ["weight", "scales", "biases"][i % 3];
        let dtype = if i % 3 == 0 { "U32" } else { "F32" };
        header += &format!(r#"{comma}"m{}.{part}":{{"dtype":"{dtype}","shape":[0,8],"data_offsets":[0,0]}}"#, i / 3);
    }
    header += "}";
    let length = header.len();
    std::fs::write(&path, [&(length as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    drop(header);
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = Instant::now();
    let info = alluvium_lm::inspect(&path).unwrap();
    assert_eq!((info.tensors.len(), info.parameters()), (300_000, 0));
    let (seconds, peak) = (start.elapsed().as_secs_f64(), PEAK.load(Relaxed) - before);
    assert!(seconds < 10.0 && peak < 8 * length, "{seconds} s, {peak} bytes for {length}");
}

/// Not a test: beside the other one it would be counted.
fn a_long_chat_is_rendered() {
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1].strip() + '<|im_end|>\n' }}{% endfor %}",
    )
    .unwrap();
    let message = json!({"role": "user", "content": "word ".repeat(1000)});
    let messages = vec![message; 2000];
    let text = template.render(&json!({"messages": messages})).unwrap();
    assert!(text.len() > 9_900_000, "{}", text.len());
}
