// One digit of a sort of ids with their places, from the lowest digit to the highest. A block is `steps` times 256
// pairs in a row, so that pairs of the same digit stay in order.
struct Params { count: u32, below: u32, shift: u32, mask: u32, steps: u32, blocks: u32 }
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>;

fn digit(pair: vec2<u32>) -> u32 { return (pair.x >> p.shift) & p.mask; }

var<workgroup> found: array<atomic<u32>, 256>;

// How often each digit occurs in a block: integers, so the order in which they are added does not matter.
@compute @workgroup_size(256)
fn count(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    atomicStore(&found[lane], 0u);
    workgroupBarrier();
    for (var step = 0u; step < p.steps; step++) {
        let i = (group.x * p.steps + step) * 256u + lane;
        if i < p.count { atomicAdd(&found[digit(pair(i))], 1u); }
    }
    workgroupBarrier();
    counts[group.x * 256u + lane] = atomicLoad(&found[lane]);
}

@group(0) @binding(1) var<storage, read> counted: array<u32>;
@group(0) @binding(2) var<storage, read_write> sorted: array<vec2<u32>>;
// where the next pair of each digit goes
var<workgroup> next: array<u32, 256>;
// which invocations have a digit: bits of eight words, those of a digit 256 apart
var<workgroup> having: array<atomic<u32>, 2048>;

// Each digit has an invocation, which finds where the block's pairs of that digit begin: after all pairs of smaller
// digits and those of the same one in the blocks before.
fn begin(block: u32, lane: u32) {
    var before = 0u;
    var all = 0u;
    for (var other = 0u; other < p.blocks; other++) {
        let n = counted[other * 256u + lane];
        before += select(0u, n, other < block);
        all += n;
    }
    var sum = all;
    for (var step = 1u; step < 256u; step *= 2u) {
        next[lane] = sum;
        workgroupBarrier();
        if lane >= step { sum += next[lane - step]; }
        workgroupBarrier();
    }
    next[lane] = sum - all + before;
}

@compute @workgroup_size(256)
fn scatter(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    begin(group.x, lane);
    for (var word = 0u; word < 8u; word++) { atomicStore(&having[word * 256u + lane], 0u); }
    for (var step = 0u; step < p.steps; step++) {
        let i = (group.x * p.steps + step) * 256u + lane;
        let inside = i < p.count;
        var own: vec2<u32>;
        workgroupBarrier();
        if inside {
            own = pair(i);
            atomicOr(&having[lane / 32u * 256u + digit(own)], 1u << (lane % 32u));
        }
        workgroupBarrier();
        if inside {
            // as many as come before it in this step
            var to = next[digit(own)];
            for (var word = 0u; word < lane / 32u; word++) {
                to += countOneBits(atomicLoad(&having[word * 256u + digit(own)]));
            }
            let last = atomicLoad(&having[lane / 32u * 256u + digit(own)]);
            sorted[to + countOneBits(last & ((1u << (lane % 32u)) - 1u))] = own;
        }
        workgroupBarrier();
        var all = 0u;
        for (var word = 0u; word < 8u; word++) { all += countOneBits(atomicExchange(&having[word * 256u + lane], 0u)); }
        next[lane] += all;
    }
}
