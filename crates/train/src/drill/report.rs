//! The tasks with the whole model and with a part taken out, as a page and a picture.

use super::{Measured, STUDY, Variant};
use crate::Task;
use alluvium_core::{Device, Error, Result};
use alluvium_lm::formats::write_atomic;
use alluvium_lm::nn::Ablation;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Write as _;
use std::path::Path;

/// Writes `recall.md` and `recall.svg` into a folder.
///
/// # Errors
/// When they cannot be written.
pub fn write_report(folder: &Path, runs: &[Measured], device: &Device) -> Result<()> {
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

What two parts of a Gated DeltaNet layer are for, measured on tasks whose data is a program. Pairs of a key and a value come first, then
keys alone; at each of these the model has to name the key's value. Every sequence is new, in training and in the evaluation. To guess
one of the values that were written is right in 12.5 % of recall and 6 % of overwrite.

- **recall**: 8 pairs in 64 tokens of 128 words, each key asked once (multi-query associative recall, Zoology, arXiv:2312.04927; there the
  tokens between the questions are random, here they are empty).
- **overwrite**: 4 keys in 40 tokens of 64 words, each written four times in random order; only the value written last is right.

The model has two Gated DeltaNet layers of width 64 with 2 heads and no attention. *Without the short convolution* each token meets the rule
alone. *Without the delta term* the rule is plain gated linear attention, `S ← e^g S + β v kᵀ`: it adds to what a key holds and
replaces nothing. Everything else is the same: seeds, steps, data, learning rate. The accuracies are those after these steps: what a
model without a part would reach in the end they do not say.
";

fn page(runs: &[Measured], device: &Device) -> String {
    let mut page = INTRODUCTION.to_owned();
    let seeds = runs.iter().map(|run| run.exercise.settings.seed).collect::<std::collections::BTreeSet<_>>();
    let heads: Vec<String> = seeds.iter().map(|seed| format!(" seed {seed} |")).collect();
    let _ = writeln!(page, "\n| task | model | optimiser |{} mean | steps | seconds a run, median |", heads.concat());
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
            first.exercise.settings.iters
        );
    }
    for [whole, without] in pairs() {
        page += &comparison(runs, whole, without);
    }
    let questions = |run: &Measured| {
        let settings = &run.exercise.settings;
        settings.val_batches * settings.batch_size * run.exercise.task.keys()
    };
    let asked: Vec<String> = [Task::Recall, Task::Overwrite]
        .iter()
        .filter_map(|&task| runs.iter().find(|run| run.exercise.task == task))
        .map(|run| format!("{} questions of {}", questions(run), run.exercise.task.name()))
        .collect();
    let parameters = runs.iter().map(|run| run.parameters).max().unwrap_or(0);
    let _ = writeln!(
        page,
        "\nAccuracy on {}; at most {parameters} parameters; {device}, which did other work beside: the seconds are an order of \
         magnitude.\n\n![Accuracy over steps, a line for each seed](recall.svg)\n\nMade by `cargo run --release -- recall --out \
         docs`. One task alone: `alluvium train --task recall --out DIR`.",
        asked.join(" and ")
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
            let b = of(without).find(|b| b.exercise.settings.seed == a.exercise.settings.seed)?;
            Some(100.0 * (a.accuracy() - b.accuracy()))
        })
        .collect();
    let Some(least) = ahead.iter().copied().min_by(f64::total_cmp) else { return String::new() };
    let mean = ahead.iter().sum::<f64>() / ahead.len() as f64;
    let Variant { task, optimizer, .. } = whole;
    let (task, part) = (task.name(), without.ablation);
    format!(
        "\nOn {task}, {optimizer}, the whole model is {mean:.0} points ahead of the one {part} in the mean over the seeds, {least:.0} \
         on the seed where they are nearest.\n"
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
        let colour = if variant.ablation == Ablation::None { crate::curve::TRAINED } else { crate::curve::HELD_OUT };
        for run in runs.iter().filter(|run| run.is(variant)) {
            let points = run.curve.iter().map(|&(step, accuracy)| (step as f64, accuracy));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        }
        // below the plot, where no line runs
        legend.draw(&PathElement::new([(x, 10), (x + 18, 10)], colour.stroke_width(2)))?;
        legend.draw(&Text::new(variant.ablation.to_string(), (x + 26, 3), ("sans-serif", 13)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exercise, Settings};

    #[test]
    fn the_page_has_a_row_for_each_variant_and_the_picture_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let run = |Variant { task, ablation, optimizer, iters }, seed, accuracy| Measured {
            exercise: Exercise {
                task,
                ablation,
                settings: Settings { seed, optimizer, iters, ..Settings::of_task(task) },
            },
            parameters: 100,
            curve: vec![(10, 0.1), (20, accuracy)],
            seconds: 3.0,
        };
        let accuracy = |variant: Variant, seed| match variant.ablation {
            Ablation::None => 0.9 + 0.1 * f64::from(seed),
            _ => 0.2 + 0.3 * f64::from(seed),
        };
        let runs: Vec<Measured> = [0u8, 1]
            .iter()
            .flat_map(|&seed| STUDY.map(|variant| run(variant, u64::from(seed), accuracy(variant, seed))))
            .collect();
        write_report(folder.path(), &runs, &Device::cpu()).unwrap();
        let page = std::fs::read_to_string(folder.path().join("recall.md")).unwrap();
        assert!(
            page.contains("| task | model | optimiser | seed 0 | seed 1 | mean | steps | seconds a run, median |"),
            "{page}"
        );
        assert!(
            page.contains("| overwrite | without the delta term | adamw | 20.0 % | 50.0 % | 35.0 % | 1500 | 3 |"),
            "{page}"
        );
        let ahead =
            "On overwrite, adamw, the whole model is 60 points ahead of the one without the delta term in the mean";
        assert!(page.contains(ahead) && page.contains("the seeds, 50 on the seed where they are nearest"), "{page}");
        let svg = std::fs::read_to_string(folder.path().join("recall.svg")).unwrap();
        assert!(svg.matches("polyline").count() >= 12, "{svg}");
    }
}
