//! The study's page and picture.

use super::study::{Measured, STUDY, Variant};
use alluvium::core::{Device, Error, Result};
use alluvium::lm::formats::write_atomic;
use alluvium::lm::nn::Ablation;
use alluvium::train::data::Task;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Write as _;
use std::path::Path;

const WHOLE: RGBColor = RGBColor(0x2a, 0x6f, 0xbb);
const WITHOUT: RGBColor = RGBColor(0xd1, 0x49, 0x2e);

/// Writes `recall.md` and `recall.svg` into a folder.
pub(crate) fn write(folder: &Path, runs: &[Measured], device: &Device) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let page = page(runs, device);
    write_atomic(folder.join("recall.md"), |file| file.write_all(page.as_bytes()))?;
    let path = folder.join("recall.svg");
    let mut picture = String::new();
    picture_of(runs, &mut picture).map_err(|e| Error::file(&path, format!("cannot draw: {e}")))?;
    write_atomic(&path, |file| file.write_all(picture.as_bytes()))
}

const INTRODUCTION: &str = "\
# Recall and overwriting

This page measures what two parts of a Gated DeltaNet layer contribute. Sequences come from a program: pairs of a key and a
value, then keys alone. At each of these keys the model must predict the key's value. Every sequence is new, in training and in
validation. Guessing one of the values of the sequence is right in 12.5 % of recall and 6 % of overwrite.

- **recall**: 8 pairs in 64 tokens, vocabulary 128, each key queried once (multi-query associative recall, Zoology,
  arXiv:2312.04927; the tokens between the queries are random there, 0 here).
- **overwrite**: 4 keys in 40 tokens, vocabulary 64, each key written four times in random order; the target is the value
  written last.

The model has two Gated DeltaNet layers of width 64 with 2 heads and no attention. *Without the short convolution* each token
enters the rule alone. *Without the delta term* the rule is gated linear attention, `S ← e^g S + β v kᵀ`: it adds to the value
of a key and never replaces it. Seeds, steps, data and learning rate are the same. Accuracies are those after the given
number of steps; longer training of an ablated model was not measured.
";

fn page(runs: &[Measured], device: &Device) -> String {
    let mut page = INTRODUCTION.to_owned();
    let seeds = runs.iter().map(|run| run.experiment.settings.seed).collect::<std::collections::BTreeSet<_>>();
    let heads: Vec<String> = seeds.iter().map(|seed| format!(" seed {seed} |")).collect();
    let _ = writeln!(page, "\n| task | model | optimizer |{} mean | steps | seconds a run, median |", heads.concat());
    let _ = writeln!(page, "|---|---|---|{}---:|---:|---:|", "---:|".repeat(seeds.len()));
    for variant in STUDY {
        let runs: Vec<&Measured> = runs.iter().filter(|run| run.is(variant)).collect();
        let Some(first) = runs.first() else { continue };
        let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds[seconds.len() / 2];
        let accuracy = 100.0 * runs.iter().map(|run| run.accuracy()).sum::<f64>() / runs.len() as f64;
        let cells: Vec<String> = runs.iter().map(|run| format!(" {:.1} % |", 100.0 * run.accuracy())).collect();
        let _ = writeln!(
            page,
            "| {} | {} | {} |{} {accuracy:.1} % | {} | {seconds:.0} |",
            variant.task.name(),
            variant.ablation,
            variant.optimizer,
            cells.concat(),
            first.experiment.settings.iters
        );
    }
    for [whole, without] in pairs() {
        page += &comparison(runs, whole, without);
    }
    let queries_of = |run: &Measured| {
        let settings = &run.experiment.settings;
        settings.val_batches * settings.batch_size * run.experiment.task.keys()
    };
    let queries: Vec<String> = [Task::Recall, Task::Overwrite]
        .iter()
        .filter_map(|&task| runs.iter().find(|run| run.experiment.task == task))
        .map(|run| format!("{} queries of {}", queries_of(run), run.experiment.task.name()))
        .collect();
    let parameters = runs.iter().map(|run| run.parameters).max().unwrap_or(0);
    let _ = writeln!(
        page,
        "\nAccuracy on {}; at most {parameters} parameters; {device}, shared with other work: the seconds are an order of \
         magnitude.\n\n![Accuracy over steps, a line for each seed](recall.svg)\n\nMade by `cargo run --release -p alluvium \
         --example recall_study -- docs`.\nOne task alone: `alluvium train --task recall --out DIR`.",
        queries.join(" and ")
    );
    page
}

/// The variants two by two: the whole model, and the one without a part.
fn pairs() -> [[Variant; 2]; 3] {
    let [a, b, c, d, e, f] = STUDY;
    [[a, b], [c, d], [e, f]]
}

/// How far the whole model is ahead, in words.
fn comparison(runs: &[Measured], whole: Variant, without: Variant) -> String {
    let of = |variant| runs.iter().filter(move |run| run.is(variant));
    let ahead: Vec<f64> = of(whole)
        .filter_map(|a| {
            let b = of(without).find(|b| b.experiment.settings.seed == a.experiment.settings.seed)?;
            Some(100.0 * (a.accuracy() - b.accuracy()))
        })
        .collect();
    let Some(least) = ahead.iter().copied().min_by(f64::total_cmp) else { return String::new() };
    let mean = ahead.iter().sum::<f64>() / ahead.len() as f64;
    let Variant { task, optimizer, .. } = whole;
    let (task, part) = (task.name(), without.ablation);
    format!(
        "\nOn {task} with {optimizer} the whole model is {mean:.0} points ahead of the model {part} (mean over the seeds; the \
         smallest difference is {least:.0} points).\n"
    )
}

type Drawn<'a> = std::result::Result<(), Box<dyn std::error::Error + 'a>>;

fn picture_of<'a>(runs: &[Measured], picture: &'a mut String) -> Drawn<'a> {
    let root = SVGBackend::with_string(picture, (1140, 384)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, pair) in root.split_evenly((1, 3)).iter().zip(pairs()) {
        draw_panel(area, pair, runs)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel<'a>(area: &DrawingArea<SVGBackend<'a>, Shift>, pair: [Variant; 2], runs: &[Measured]) -> Drawn<'a> {
    let Variant { task, optimizer, .. } = pair[0];
    let drawn = runs.iter().filter(|run| pair.iter().any(|&variant| run.is(variant)));
    let last = drawn.flat_map(|run| &run.curve).map(|p| p.0).max().unwrap_or(1);
    let (plot, legend) = area.split_vertically(356);
    let mut chart = ChartBuilder::on(&plot)
        .margin(14)
        .caption(format!("{}, {optimizer}", task.name()), ("sans-serif", 17))
        .x_label_area_size(38)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..last as f64, 0.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("steps")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{:.0} %", 100.0 * y))
        .draw()?;
    for (variant, x) in pair.into_iter().zip([62, 152]) {
        let color = if variant.ablation == Ablation::None { WHOLE } else { WITHOUT };
        for run in runs.iter().filter(|run| run.is(variant)) {
            let points = run.curve.iter().map(|&(step, accuracy)| (step as f64, accuracy));
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        }
        // below the plot, where no line runs
        legend.draw(&PathElement::new([(x, 10), (x + 18, 10)], color.stroke_width(2)))?;
        legend.draw(&Text::new(variant.ablation.to_string(), (x + 26, 3), ("sans-serif", 13)))?;
    }
    Ok(())
}
