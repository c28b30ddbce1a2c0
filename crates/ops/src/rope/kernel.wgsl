// An invocation rotates a unit of pairs in up to `each` heads of a token, or copies a unit that passes through. An
// angle is an integer of 2^-32 turns: the product of position and frequency wraps around without loss.
struct Params { tokens: u32, heads: u32, width: u32, pairs: u32, each: u32, back: u32, step: u32, apart: u32, magnitude: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
// turns a position, in units of 2^-32 and, after all of those, of 2^-64
@group(0) @binding(2) var<storage, read> frequencies: array<Bits>;
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;

struct Angle { sine: Num, cosine: Num }

// the upper half of a product
fn high(a: Bits, b: Bits) -> Bits {
    let low = Bits(0xffffu);
    let half = Bits(16u);
    let first = (a >> half) * (b & low) + (((a & low) * (b & low)) >> half);
    let second = (a & low) * (b >> half) + (first & low);
    return (a >> half) * (b >> half) + (first >> half) + (second >> half);
}

// the polynomials of Moshier's Cephes within an eighth of a turn of the nearest quarter
fn angle(turns: Bits) -> Angle {
    let quarter = (turns + Bits(0x20000000u)) >> Bits(30u);
    let a = Num(bitcast<Whole>(turns - (quarter << Bits(30u)))) * 1.4629180792671596e-9;
    let q = a * a;
    let s = a + a * q * ((q * -1.9515295891e-4 + 8.3321608736e-3) * q - 1.6666654611e-1);
    let c = 1.0 - 0.5 * q + q * q * ((q * 2.443315711809948e-5 - 1.388731625493765e-3) * q + 4.166664568298827e-2);
    let odd = (quarter & Bits(1u)) == Bits(1u);
    let sine = select(s, c, odd);
    let cosine = select(c, s, odd);
    let minus_sine = (quarter & Bits(2u)) == Bits(2u);
    let minus_cosine = ((quarter + Bits(1u)) & Bits(2u)) == Bits(2u);
    return Angle(select(sine, -sine, minus_sine), select(cosine, -cosine, minus_cosine));
}

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
