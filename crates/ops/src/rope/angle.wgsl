// The sine and cosine of an angle in units of 2^-32 turns: the product of position and frequency wraps around without
// loss.
struct Angle { sine: Num, cosine: Num }

// the upper half of a product
fn high(a: Bits, b: Bits) -> Bits {
    let low = Bits(0xffffu);
    let half = Bits(16u);
    let first = (a >> half) * (b & low) + (((a & low) * (b & low)) >> half);
    let second = (a & low) * (b >> half) + (first & low);
    return (a >> half) * (b >> half) + (first >> half) + (second >> half);
}

// the polynomials of Moshier's Cephes within an eighth of a turn of the nearest quarter
fn angle(turns: Bits) -> Angle {
    let quarter = (turns + Bits(0x20000000u)) >> Bits(30u);
    let a = Num(bitcast<Whole>(turns - (quarter << Bits(30u)))) * 1.4629180792671596e-9;
    let q = a * a;
    let s = a + a * q * ((q * -1.9515295891e-4 + 8.3321608736e-3) * q - 1.6666654611e-1);
    let c = 1.0 - 0.5 * q + q * q * ((q * 2.443315711809948e-5 - 1.388731625493765e-3) * q + 4.166664568298827e-2);
    let odd = (quarter & Bits(1u)) == Bits(1u);
    let sine = select(s, c, odd);
    let cosine = select(c, s, odd);
    let minus_sine = (quarter & Bits(2u)) == Bits(2u);
    let minus_cosine = ((quarter + Bits(1u)) & Bits(2u)) == Bits(2u);
    return Angle(select(sine, -sine, minus_sine), select(cosine, -cosine, minus_cosine));
}
