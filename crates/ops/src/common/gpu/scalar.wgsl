// A row is read element by element: its width is no multiple of four.
alias Num = f32;
alias Stored = f32;
fn widen(x: Stored) -> Num { return x; }
fn narrow(x: Num) -> Stored { return x; }
fn total(x: Num) -> f32 { return x; }
