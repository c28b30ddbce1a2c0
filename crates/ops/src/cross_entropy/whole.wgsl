// the gradient takes the logits' place
fn keep(at: u32, gradient: vec4<f32>) { z[at] = gradient; }
