// The index of a workgroup in a line that may be folded over two axes of the grid.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
