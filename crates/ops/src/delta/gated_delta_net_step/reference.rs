//! The definition: the layer's operations one after the other, each by its own definition in f64.

use super::sizes::{HeadLayout, Sizes};
use crate::causal_conv1d::{Activation, reference as conv};
use crate::delta::gated_delta_rule::reference as rule;
use crate::delta::gdn_gate::reference as gate;
use crate::gated_rms_norm::reference as norm;
use crate::l2_norm::reference as l2;
use crate::op::{Array, Given};

/// What the options of a case say.
pub(super) struct Settings {
    pub(super) layout: HeadLayout,
    pub(super) l2_eps: f64,
    pub(super) norm_eps: f64,
    pub(super) beta_scale: f64,
    pub(super) scale: f64,
}

/// The output and both states.
pub(super) fn forward(t: &Given<Array>, settings: &Settings) -> Vec<Array> {
    let Ok(sizes) = Sizes::of(&t.dims, settings.layout) else { return Vec::new() };
    let Sizes { batch, row, channels, key_heads, value_heads, k, v, places, .. } = sizes;
    let share = sizes.share();
    // of each row, heads of `width` elements from `first` on, as many to a key head as they share it
    let heads = |first: usize, stride: usize, each: usize, width: usize| {
        let rows = t["x"].data.chunks_exact(row);
        let data = rows.flat_map(|x| {
            (0..key_heads * each).flat_map(move |head| {
                let at = first + head / each * stride + head % each * width;
                x[at..at + width].to_vec()
            })
        });
        Array::new([batch, key_heads * each, width], data.collect::<Vec<f64>>())
    };
    let mut inputs = vec![0.0; batch * channels];
    for (b, x) in t["x"].data.chunks_exact(row).enumerate() {
        for (channel, at, len) in sizes.runs() {
            inputs[b * channels + channel..][..len].copy_from_slice(&x[at..at + len]);
        }
    }
    let given = |args: Vec<(&'static str, Array)>| Given {
        args: args.into_iter().map(|(name, x)| (name, Some(x))).collect(),
        dims: t.dims.clone(),
        options: t.options.clone(),
    };
    let convolved = conv::forward(
        &given(vec![
            ("x", Array::new([batch, 1, channels], inputs)),
            ("w", t["filter"].clone()),
            ("initial_state", t["conv_state"].clone()),
        ]),
        Activation::Silu,
    );
    let part = |first: usize, heads: usize, width: usize| {
        let rows = convolved[0].data.chunks_exact(channels);
        let data = rows.flat_map(|x| x[first..first + heads * width].to_vec());
        Array::new([batch, 1, heads, width], data.collect::<Vec<f64>>())
    };
    let all_keys = key_heads * k;
    let flat = |x: Array| Array::new([batch, value_heads], x.data);
    let gates = gate::forward(&given(vec![
        ("a", flat(heads(places.a, places.strides[2], share, 1))),
        ("b", flat(heads(places.b, places.strides[2], share, 1))),
        ("a_log", t["a_log"].clone()),
        ("dt_bias", t["dt_bias"].clone()),
    ]));
    let one_token = |x: &Array| Array::new([batch, 1, value_heads], x.data.clone());
    let mut moved = rule::forward(
        &given(vec![
            ("q", l2::forward(&part(0, key_heads, k), settings.l2_eps)),
            ("k", l2::forward(&part(all_keys, key_heads, k), settings.l2_eps)),
            ("v", part(2 * all_keys, value_heads, v)),
            ("g", one_token(&gates[0])),
            ("beta", one_token(&gates[1].map(|beta| settings.beta_scale * beta))),
            ("initial_state", t["state"].clone()),
        ]),
        settings.scale,
    );
    let state = moved.remove(1);
    let o = Array::new([batch, value_heads, v], moved.remove(0).data);
    let z = heads(places.z, places.strides[1], share, v);
    let y = norm::forward(&given(vec![("x", o), ("z", z), ("w", t["norm"].clone())]), settings.norm_eps);
    vec![y, convolved[1].clone(), state]
}
