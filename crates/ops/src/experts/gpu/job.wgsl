// The choices of one expert, from the first of a job on: cut from the sorted ones, or one by one as the ids lie.
@group(0) @binding(5) var<storage, read> order: array<u32>;
@group(0) @binding(6) var<storage, read> jobs: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> starts: array<u32>;
struct Job { expert: u32, place: u32, end: u32 }

fn job_of(number: u32) -> Job {
    if SORTED == 0u { return Job(order[number], number, number + 1u); }
    let job = jobs[number];
    if job.x == NONE { return Job(NONE, 0u, 0u); }
    return Job(job.x, job.y, starts[job.x + 1u]);
}

fn choice(place: u32) -> u32 {
    if SORTED == 0u { return place; }
    return order[place];
}
