// A stable sort of the choices by expert. Ids out of range are the last bucket.
struct Params { count: u32, experts: u32, lines: u32, jobs: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read_write> starts: array<u32>;
@group(0) @binding(2) var<storage, read_write> order: array<u32>;
const NONE = 0xffffffffu;
var<workgroup> shares: array<u32, 256>;

// the sum over the invocations up to this one
fn sum_up_to(x: u32, lane: u32) -> u32 {
    var sum = x;
    for (var step = 1u; step < 256u; step *= 2u) {
        workgroupBarrier();
        shares[lane] = sum;
        workgroupBarrier();
        if lane >= step { sum += shares[lane - step]; }
    }
    return sum;
}

// the sum of the last invocation
fn last_of_all(sum: u32, lane: u32) -> u32 {
    workgroupBarrier();
    shares[lane] = sum;
    workgroupBarrier();
    return shares[255];
}

// One workgroup per bucket: it counts the ids of the buckets before its own, which says where its places begin, and
// then writes them; each invocation has a run of ids.
@compute @workgroup_size(256)
fn sort(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let bucket = group_index(group, groups);
    if bucket > p.experts { return; }
    let run = (p.count + 255u) / 256u;
    let first = min(lane * run, p.count);
    let end = min(first + run, p.count);
    var before = 0u;
    var own = 0u;
    for (var i = first; i < end; i++) {
        let id = min(ids[i], p.experts);
        before += select(0u, 1u, id < bucket);
        own += select(0u, 1u, id == bucket);
    }
    let start = last_of_all(sum_up_to(before, lane), lane);
    let upto = sum_up_to(own, lane);
    var to = start + upto - own;
    for (var i = first; i < end; i++) {
        if min(ids[i], p.experts) == bucket {
            order[to] = i;
            to += 1u;
        }
    }
    if lane == 0u { starts[bucket] = start; }
    if lane == 255u && bucket == p.experts { starts[bucket + 1u] = start + upto; }
}

@group(0) @binding(0) var<storage, read> sorted: array<u32>;
@group(0) @binding(1) var<storage, read_write> jobs: array<vec2<u32>>;

// The places of each bucket in jobs of up to `lines`: a job is its bucket and its first place. Those that are not
// needed are none.
@compute @workgroup_size(256)
fn cut(@builtin(local_invocation_index) lane: u32) {
    let run = (p.experts + 256u) / 256u;
    let first = min(lane * run, p.experts + 1u);
    let end = min(first + run, p.experts + 1u);
    var own = 0u;
    for (var i = first; i < end; i++) { own += (sorted[i + 1u] - sorted[i] + p.lines - 1u) / p.lines; }
    let upto = sum_up_to(own, lane);
    let all = last_of_all(upto, lane);
    var to = upto - own;
    for (var i = first; i < end; i++) {
        for (var place = sorted[i]; place < sorted[i + 1u]; place += p.lines) {
            jobs[to] = vec2<u32>(i, place);
            to += 1u;
        }
    }
    for (var i = all + lane; i < p.jobs; i += 256u) { jobs[i] = vec2<u32>(NONE, 0u); }
}
