// One workgroup per tile of a job's choices.
fn put_row(place: u32, end: u32, col: u32, x: vec4<f32>) {
    if place < end { put_c(order[place], col, x); }
}

@compute @workgroup_size(256)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let job = jobs[group.y];
    if job.x == NONE { return; }
    let end = starts[job.x + 1u];
    if lane < TILE {
        let place = job.y + lane;
        var row = NONE;
        if place < end { row = order[place] / p.sharers; }
        rows[lane] = row;
    }
    workgroupBarrier();
    let known = job.x < p.experts;
    let first = group.x * TILE;
    var sums = tile_sums(lane, job.x, vec2<u32>(0u, first), 0u, select(0u, p.k, known));
    if !known {
        let none = no_number(job.x);
        sums = Sums(none, none, none, none);
    }
    let place = job.y + 4u * (lane / 16u);
    let col = first + 4u * (lane % 16u);
    put_row(place, end, col, sums.x);
    put_row(place + 1u, end, col, sums.y);
    put_row(place + 2u, end, col, sums.z);
    put_row(place + 3u, end, col, sums.w);
}
