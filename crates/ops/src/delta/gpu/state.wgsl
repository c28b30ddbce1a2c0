// The scan over chunks: a workgroup keeps TILE rows of the state of a head in registers and shared memory while the
// chunks of a sequence pass, forwards or, for gradients, backwards.
//
// forwards (BACK 0): `states` gets the state at the chunk's start; y = x - left state; state <- decay state + sum of
// (to-the-end factor * y) right.
// backwards (BACK 1): `states` holds a gradient that joins at the chunk's start and gets the one at its end; y = x +
// factor * (left state); state <- decay state - sum of y right + what joined.
//
// Constants: K, V; TILE a multiple of 4; LENGTH, the tokens of a chunk, at most 64.
struct Params { sequences: u32, v_heads: u32, left_share: u32, right_share: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> sequences: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> left: array<f32>;
@group(0) @binding(2) var<storage, read> right: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> states: array<f32>;
@group(0) @binding(7) var<storage, read_write> last: array<f32>;

const EACH: u32 = TILE / 4u;
const AHEAD: u32 = 16u;
// the left factor is loaded in pieces of this many elements of each token, column by column, into workgroup memory
const PIECE: u32 = 16u;
const PITCH: u32 = 65u;
// where there are few columns, several invocations share one: each has a run of its rows
const RUNS: u32 = max(256u / K, 1u);
const RUN_ROWS: u32 = (TILE + RUNS - 1u) / RUNS;
var<workgroup> state: array<f32, TILE * K>;
// what the tokens write; before that, a piece of the left side
var<workgroup> written: array<f32, max(64u * TILE, PIECE * PITCH)>;

// number `i` of the piece of 64 tokens that begins with column `k`
fn piece(source: u32, stride: u32, tokens: u32, k: u32, i: u32) -> f32 {
    let column = k + i % PIECE;
    if i / PIECE >= tokens || column >= K { return 0.0; }
    return left[source + i / PIECE * stride + column];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles = (V + TILE - 1u) / TILE;
    let index = group_index(group, groups);
    if index >= p.sequences * p.v_heads * tiles { return; }
    let tile = index % tiles * TILE;
    let head = (index / tiles) % p.v_heads;
    let sequence = sequences[index / tiles / p.v_heads];
    let rows = min(TILE, V - tile);
    let left_heads = p.v_heads / p.left_share;
    let right_heads = p.v_heads / p.right_share;
    let own = ((index / tiles / p.v_heads * p.v_heads + head) * V + tile) * K;
    for (var i = lane; i < TILE * K; i += 256u) {
        state[i] = 0.0;
        if i < rows * K { state[i] = last[own + i]; }
    }
    workgroupBarrier();
    for (var step = 0u; step < sequence.w; step++) {
        let at = select(step, sequence.w - 1u - step, BACK == 1u);
        let first = sequence.x + at * LENGTH;
        let tokens = min(LENGTH, sequence.x + sequence.y - first);
        let kept = (((sequence.z + at) * p.v_heads + head) * V + tile) * K;

        // y: an invocation has one token and EACH rows
        let i = lane % 64u;
        let v_first = lane / 64u * EACH;
        let place = ((first + i) * p.v_heads + head) * V + tile + v_first;
        // what is needed after the sums is asked for before them
        var end = 0.0;
        if i < tokens { end = factors[(first + i) * p.v_heads + head].y; }
        let decay = factors[(first + tokens - 1u) * p.v_heads + head].x;
        var sums: array<f32, EACH>;
        var old: array<f32, EACH>;
        for (var r = 0u; r < EACH; r++) {
            sums[r] = 0.0;
            old[r] = 0.0;
            if i < tokens && v_first + r < rows { old[r] = x[place + r]; }
        }
        let stride = left_heads * K;
        let source = first * stride + head / p.left_share * K;
        // neighbours read neighbouring values, and the next piece is in flight while this one is used
        var ahead: array<f32, 4>;
        for (var j = 0u; j < 4u; j++) { ahead[j] = piece(source, stride, tokens, 0u, lane + 256u * j); }
        for (var k = 0u; k < K; k += PIECE) {
            workgroupBarrier();
            for (var j = 0u; j < 4u; j++) {
                let number = lane + 256u * j;
                written[number % PIECE * PITCH + number / PIECE] = ahead[j];
            }
            workgroupBarrier();
            if k + PIECE < K {
                for (var j = 0u; j < 4u; j++) { ahead[j] = piece(source, stride, tokens, k + PIECE, lane + 256u * j); }
            }
            for (var a = 0u; a < PIECE; a++) {
                let number = written[a * PITCH + i];
                let column = select(min(k + a, K - 1u), k + a, K % PIECE == 0u);
                for (var r = 0u; r < EACH; r++) { sums[r] += number * state[(v_first + r) * K + column]; }
            }
        }
        workgroupBarrier();
        for (var r = 0u; r < EACH; r++) {
            let v = v_first + r;
            let fresh = select(old[r] - sums[r], old[r] + end * sums[r], BACK == 1u);
            var sum = 0.0;
            if i < tokens && v < rows {
                y[place + r] = fresh;
                sum = select(end * fresh, -fresh, BACK == 1u);
            }
            written[i * TILE + v] = sum;
        }
        workgroupBarrier();

        // the state: an invocation has a column, or a run of its rows
        for (var cell = lane; cell < RUNS * K; cell += 256u) {
            let k = cell % K;
            let run_first = cell / K * RUN_ROWS;
            var fresh: array<f32, RUN_ROWS>;
            for (var r = 0u; r < RUN_ROWS; r++) { fresh[r] = 0.0; }
            let source = (first * right_heads + head / p.right_share) * K + k;
            var next: array<f32, AHEAD>;
            for (var a = 0u; a < AHEAD; a++) {
                next[a] = 0.0;
                if a < tokens { next[a] = right[source + a * right_heads * K]; }
            }
            for (var i = 0u; i < tokens; i += AHEAD) {
                // the next tokens are under way while these are used
                let each = next;
                for (var a = 0u; a < AHEAD; a++) {
                    next[a] = 0.0;
                    if i + AHEAD + a < tokens { next[a] = right[source + (i + AHEAD + a) * right_heads * K]; }
                }
                for (var a = 0u; a < AHEAD; a++) {
                    for (var r = 0u; r < RUN_ROWS; r++) {
                        let row = select(min(run_first + r, TILE - 1u), run_first + r, RUNS * RUN_ROWS == TILE);
                        fresh[r] += written[(i + a) * TILE + row] * each[a];
                    }
                }
            }
            for (var r = 0u; r < RUN_ROWS; r++) {
                let v = run_first + r;
                if v < rows {
                    let before = state[v * K + k];
                    var joined = 0.0;
                    if BACK == 1u { joined = states[kept + v * K + k]; }
                    states[kept + v * K + k] = before;
                    state[v * K + k] = decay * before + fresh[r] + joined;
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = lane; i < rows * K; i += 256u) { last[own + i] = state[i]; }
}
