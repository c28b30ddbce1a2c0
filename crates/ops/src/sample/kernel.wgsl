// `parts` finds the largest logit of each run of PART tokens, `choose` has a workgroup per row. The tokens that stay are the first in the order of descending logits: what is looked
// for is the last of them, four bits of its place in that order at a time.
struct Params { rows: u32, words: u32, top_k: u32, temperature: f32, top_p: f32, least: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<X4>;
@group(0) @binding(1) var<storage, read> draws: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
// of each part of each row: the largest logit, and the first token that has it, NONE or WRONG
@group(0) @binding(3) var<storage, read_write> tops: array<f32>;
@group(0) @binding(4) var<storage, read_write> firsts: array<u32>;

const LANES: u32 = 256u;
const NONE: u32 = 0xffffffffu;
// a logit of the part is NaN or infinite
const WRONG: u32 = 0xfffffffeu;
const PART: u32 = 2048u;
// quads that an invocation loads before it looks at them
const AHEAD: u32 = 4u;
// each invocation has a column of its own: sums are in order, and nothing is atomic
var<workgroup> bins: array<f32, 4096>;
var<workgroup> shares: array<f32, 256>;
var<workgroup> places: array<u32, 256>;

fn logit(row: u32, id: u32) -> f32 {
    let at = row * p.words + id;
    return widen_X(logits[at / 4u])[at % 4u];
}

// the logits from 4i on; those past the end of the row are not the row's
fn quad(row: u32, i: u32) -> vec4<f32> {
    if EVEN == 1u { return widen_X(logits[row * (p.words / 4u) + i]); }
    let last = p.words - 1u;
    let id = 4u * i;
    return vec4<f32>(
        logit(row, id), logit(row, min(id + 1u, last)), logit(row, min(id + 2u, last)), logit(row, min(id + 3u, last))
    );
}

// an integer with the order of the logits; −0 is 0
fn rank(x: f32) -> u32 {
    let bits = bitcast<u32>(x + 0.0);
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn max_of_all(x: f32, lane: u32) -> f32 {
    workgroupBarrier();
    shares[lane] = x;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { shares[lane] = max(shares[lane], shares[lane + half]); }
    }
    workgroupBarrier();
    return shares[0];
}

fn least_of_all(x: u32, lane: u32) -> u32 {
    workgroupBarrier();
    places[lane] = x;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { places[lane] = min(places[lane], places[lane + half]); }
    }
    workgroupBarrier();
    return places[0];
}

// where the tokens end whose values, from the largest logit on, together reach the goal: the rank of the last, and how
// many of the tokens of that rank are needed
struct End { rank: u32, equals: u32 }

// the value of a token: 1 to count, its probability times a constant to add up probabilities
fn value(x: f32, top: f32, counting: bool) -> f32 {
    if counting { return 1.0; }
    return exp1(x - top);
}

fn end_of(row: u32, lane: u32, top: f32, share: f32, counting: bool) -> End {
    var found = 0u;
    var before = 0.0;
    var goal = share;
    for (var shift = 28u; ; shift -= 4u) {
        for (var bin = 0u; bin < 16u; bin++) { bins[bin * LANES + lane] = 0.0; }
        let quads = (p.words + 3u) / 4u;
        for (var first = lane; first < quads; first += AHEAD * LANES) {
            var xs: array<vec4<f32>, AHEAD>;
            for (var j = 0u; j < AHEAD; j++) { xs[j] = quad(row, min(first + j * LANES, quads - 1u)); }
            for (var i = 0u; i < 4u * AHEAD; i++) {
                let x = xs[i / 4u][i % 4u];
                let r = rank(x);
                let mine = 4u * (first + i / 4u * LANES) + i % 4u < p.words;
                if mine && (shift == 28u || (r >> (shift + 4u)) == (found >> (shift + 4u))) {
                    bins[((r >> shift) & 15u) * LANES + lane] += value(x, top, counting);
                }
            }
        }
        // sixteen invocations a bin, and then all of them the sixteen bins
        workgroupBarrier();
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) { sum += bins[lane / 16u * LANES + lane % 16u * 16u + i]; }
        shares[lane] = sum;
        workgroupBarrier();
        var sums: array<f32, 16>;
        var all = 0.0;
        for (var bin = 0u; bin < 16u; bin++) {
            sums[bin] = 0.0;
            for (var i = 0u; i < 16u; i++) { sums[bin] += shares[bin * 16u + i]; }
            all += sums[bin];
        }
        // of the first sums all is known: the share becomes a number to reach
        if shift == 28u && !counting { goal = share * all; }
        var bin = 15u;
        while bin > 0u && before + sums[bin] < goal {
            before += sums[bin];
            bin -= 1u;
        }
        // rounding may leave the goal unreached: then all tokens stay
        found |= bin << shift;
        workgroupBarrier();
        if shift == 0u { break; }
    }
    // back from the rank to the logit
    let x = bitcast<f32>(select(~found, found & 0x7fffffffu, (found >> 31u) == 1u));
    let equals = ceil((goal - before) / value(x, top, counting));
    return End(found, u32(clamp(equals, 1.0, 4.0e9)));
}

@compute @workgroup_size(256)
fn parts(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = group_index(group, groups);
    let count = (p.words + PART - 1u) / PART;
    if own >= p.rows * count { return; }
    let row = own / count;
    let begin = own % count * PART;
    var xs: array<vec4<f32>, PART / 4u / LANES>;
    let quads = (p.words + 3u) / 4u;
    for (var j = 0u; j < PART / 4u / LANES; j++) {
        xs[j] = quad(row, min(begin / 4u + j * LANES + lane, quads - 1u));
    }
    var most = -3.4028234e38;
    var wrong = 0u;
    for (var i = 0u; i < PART / LANES; i++) {
        let x = xs[i / 4u][i % 4u];
        if begin + 4u * (i / 4u * LANES + lane) + i % 4u >= p.words { continue; }
        // tested by its bits, which drivers do not optimize away: NaN or +∞
        let bits = bitcast<u32>(x);
        if (bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u { wrong = 1u; }
        most = max(most, x);
    }
    let top = max_of_all(most, lane);
    var first = NONE;
    for (var i = 0u; i < PART / LANES; i++) {
        let id = begin + 4u * (i / 4u * LANES + lane) + i % 4u;
        if id < p.words && first == NONE && xs[i / 4u][i % 4u] == top { first = id; }
    }
    first = least_of_all(first, lane);
    let sound = least_of_all(1u - wrong, lane) == 1u;
    if lane == 0u {
        tops[own] = top;
        firsts[own] = select(WRONG, first, sound);
    }
}

@compute @workgroup_size(256)
fn choose(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_index(group, groups);
    if row >= p.rows { return; }
    let count = (p.words + PART - 1u) / PART;
    var most = -3.4028234e38;
    var wrong = 0u;
    for (var i = lane; i < count; i += LANES) {
        most = max(most, tops[row * count + i]);
        if firsts[row * count + i] == WRONG { wrong = 1u; }
    }
    let top = max_of_all(most, lane);
    var first = NONE;
    for (var i = lane; i < count; i += LANES) {
        if tops[row * count + i] == top { first = min(first, firsts[row * count + i]); }
    }
    first = least_of_all(first, lane);
    // without a largest token there is nothing to choose
    let sound = least_of_all(select(1u, 0u, wrong == 1u || first == NONE), lane) == 1u;

    var chosen = first;
    if FILTERS != 0u {
        var end = End(0u, NONE);
        if (FILTERS & 2u) != 0u { end = end_of(row, lane, top, f32(p.top_k), true); }
        if (FILTERS & 4u) != 0u {
            let other = end_of(row, lane, top, p.top_p, false);
            if other.rank > end.rank || (other.rank == end.rank && other.equals < end.equals) { end = other; }
        }
        // each invocation has a run of tokens: first how many equals of the last token come before the run
        let run = (p.words + 4u * LANES - 1u) / (4u * LANES) * 4u;
        let begin = min(lane * run, p.words);
        let stop = min(begin + run, p.words);
        var equals = 0u;
        for (var id = begin; id < stop; id += 4u) {
            let xs = quad(row, id / 4u);
            for (var j = 0u; j < min(4u, stop - id); j++) {
                if rank(xs[j]) == end.rank { equals += 1u; }
            }
        }
        workgroupBarrier();
        places[lane] = equals;
        workgroupBarrier();
        var before = 0u;
        for (var i = 0u; i < lane; i++) { before += places[i]; }
        var seen = before;
        var weight = 0.0;
        for (var id = begin; id < stop; id += 4u) {
            let xs = quad(row, id / 4u);
            for (var j = 0u; j < min(4u, stop - id); j++) { weight += weight_of(xs[j], top, end, &seen); }
        }
        shares[lane] = weight;
        workgroupBarrier();
        var all = 0.0;
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) {
            if i == lane { sum = all; }
            all += shares[i];
        }
        let goal = draws[row] * all;
        // the run in which the sum passes the goal; where rounding leaves it unreached, the last that weighs anything
        var last = 0u;
        var passed = false;
        var upto = 0.0;
        for (var i = 0u; i < LANES; i++) {
            if !passed && shares[i] > 0.0 {
                last = i;
                upto += shares[i];
                passed = upto > goal;
            }
        }
        seen = before;
        chosen = NONE;
        if lane == last {
            for (var id = begin; id < stop; id++) {
                let w = weight_of(logit(row, id), top, end, &seen);
                if w > 0.0 && (chosen == NONE || sum <= goal) {
                    chosen = id;
                    sum += w;
                }
            }
        }
        chosen = least_of_all(chosen, lane);
    }
    if lane == 0u { ids[row] = select(NONE, chosen, sound); }
}

// what a token weighs in the draw; `seen` counts the equals of the last token that stays
fn weight_of(x: f32, top: f32, end: End, seen: ptr<function, u32>) -> f32 {
    let r = rank(x);
    var stays = r > end.rank;
    if r == end.rank {
        stays = *seen < end.equals;
        *seen += 1u;
    }
    if (FILTERS & 8u) != 0u { stays = stays && x - top >= p.least; }
    return select(0.0, exp1((x - top) / p.temperature), stays);
}
