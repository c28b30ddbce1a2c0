// A row is read four elements at once.
alias Num = vec4<f32>;
alias Stored = X4;
fn widen(x: Stored) -> Num { return widen_X(x); }
fn narrow(x: Num) -> Stored { return narrow_X(x); }
fn total(x: Num) -> f32 { return (x.x + x.y) + (x.z + x.w); }
