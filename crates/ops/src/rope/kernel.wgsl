// An invocation rotates a unit of pairs in up to `each` heads of a token, or copies a unit that passes through.
struct Params { tokens: u32, heads: u32, width: u32, pairs: u32, each: u32, back: u32, step: u32, apart: u32, magnitude: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
// turns a position, in units of 2^-32 and, after all of those, of 2^-64
@group(0) @binding(2) var<storage, read> frequencies: array<Bits>;
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;

@compute @workgroup_size(256)
fn rotate(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    let jobs = p.width - p.pairs;
    let job = i % jobs;
    let chunks = (p.heads + p.each - 1u) / p.each;
    let token = i / jobs / chunks;
    if token >= p.tokens { return; }
    let first = i / jobs % chunks * p.each;
    let end = min(first + p.each, p.heads);
    if job >= p.pairs {
        for (var head = first; head < end; head++) {
            let at = (token * p.heads + head) * p.width + p.pairs + job;
            y[at] = x[at];
        }
        return;
    }
    let position = Bits(positions[token]);
    let by = angle(position * frequencies[job] + high(position, frequencies[p.pairs + job]));
    let sine = p.magnitude * select(by.sine, -by.sine, p.back == 1u);
    let cosine = p.magnitude * by.cosine;
    for (var head = first; head < end; head++) {
        let at = (token * p.heads + head) * p.width + job * p.step;
        let a = widen(x[at]);
        let b = widen(x[at + p.apart]);
        y[at] = narrow(a * cosine - b * sine);
        y[at + p.apart] = narrow(a * sine + b * cosine);
    }
}
