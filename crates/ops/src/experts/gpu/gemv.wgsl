// A few rows against the matrix of their expert, which is read once, in storage order: LANES invocations share the sums
// of four of its rows.
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
const SETS: u32 = 256u / LANES;
var<workgroup> shares: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let each = (p.n + 4u * SETS - 1u) / (4u * SETS);
    let number = group_index(group, groups);
    if number / each >= p.jobs { return; }
    let job = job_of(number / each);
    if job.place >= job.end { return; }
    let own = lane % LANES;
    let n = (number % each * SETS + lane / LANES) * 4u;
    var rows: array<u32, FEW>;
    var sums: array<vec4<f32>, FEW>;
    for (var r = 0u; r < FEW; r++) {
        // of rows past the end the last is computed again
        rows[r] = choice(min(job.place + r, job.end - 1u)) / p.sharers * p.stride;
        sums[r] = vec4<f32>(0.0);
    }
    if n < p.n && job.expert < p.experts {
        let line = (vec4<u32>(job.expert * p.outer) + min(vec4<u32>(n) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u))) * p.width;
        for (var k = own * UNIT; k < p.k; k += UNIT * LANES) {
            let these = units(line, k);
            for (var r = 0u; r < FEW; r++) { sums[r] += products(these, rows[r], k); }
        }
    }
    for (var r = 0u; r < FEW; r++) {
        workgroupBarrier();
        shares[lane] = sums[r];
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if own < half { shares[lane] += shares[lane + half]; }
        }
        if own == 0u && job.place + r < job.end {
            let to = choice(job.place + r) * p.n;
            let known = job.expert < p.experts;
            for (var i = 0u; i < 4u; i++) {
                if n + i < p.n { y[to + n + i] = select(no_number(job.expert).x, shares[lane][i], known); }
            }
        }
    }
}
