// Quantization: values to codes. Codes follow from the last bits of quotients, so these are those of the CPU: a
// driver's own division may be off by some units in the last place, and may drop what is below the normal range.

struct Scaled { whole: u32, exponent: i32 }

// a number, neither zero nor infinite, as 24 bits of which the first is set
fn scaled(bits: u32) -> Scaled {
    let exponent = i32(bits >> 23u);
    let low = bits & 0x7fffffu;
    if exponent > 0 { return Scaled(low | 0x800000u, exponent); }
    let shift = countLeadingZeros(low) - 8u;
    return Scaled(low << shift, 1 - i32(shift));
}

// the bits of a / b, to the nearest, ties to even, from those of a and b
fn quotient(a: u32, b: u32) -> u32 {
    let sign = (a ^ b) & 0x80000000u;
    let over = a & 0x7fffffffu;
    let under = b & 0x7fffffffu;
    let largest = max(over, under);
    if largest > 0x7f800000u || (over == under && (over == 0u || over == 0x7f800000u)) { return 0x7fc00000u; }
    if over == 0u || under == 0x7f800000u { return sign; }
    if under == 0u || over == 0x7f800000u { return sign | 0x7f800000u; }
    var x = scaled(over);
    let y = scaled(under);
    var exponent = x.exponent - y.exponent + 127;
    if x.whole < y.whole {
        x.whole *= 2u;
        exponent -= 1;
    }
    // 25 bits, the last below those that stay: as the driver has them, then put right. What is left over is small, so
    // that what overflows on the way to it cancels.
    var whole = u32(roughly(f32(x.whole), f32(y.whole)) * 16777216.0);
    var rest = i32((x.whole << 24u) - whole * y.whole);
    for (var i = 0u; i < 16u && rest < 0; i++) {
        whole -= 1u;
        rest += i32(y.whole);
    }
    for (var i = 0u; i < 16u && rest >= i32(y.whole); i++) {
        whole += 1u;
        rest -= i32(y.whole);
    }
    if exponent > 254 { return sign | 0x7f800000u; }
    // below the normal range fewer bits stay
    let dropped = 1u + u32(max(1 - exponent, 0));
    if dropped > 26u { return sign; }
    let kept = whole >> dropped;
    let below = whole & ((1u << dropped) - 1u);
    let tie = 1u << (dropped - 1u);
    let up = below > tie || (below == tie && (rest != 0 || (kept & 1u) == 1u));
    return sign | ((u32(max(exponent, 1) - 1) << 23u) + kept + select(0u, 1u, up));
}

// Codes one after the other into words, the lowest bits first.
@group(0) @binding(1) var<storage, read_write> words: array<u32>;
var<private> place: u32;
var<private> held: u32;
var<private> count: u32;

fn push(code: u32) {
    held |= code << count;
    count += BITS;
    if count >= 32u {
        words[place] = held;
        place += 1u;
        count -= 32u;
        held = code >> (BITS - count);
    }
}
