//! The loss curve as an SVG file.

use crate::MetricsRow;
use alluvium_core::{Error, Result};
use plotters::prelude::*;
use std::path::Path;

const TRAINED: RGBColor = RGBColor(0x2a, 0x6f, 0xbb);
const VALIDATION: RGBColor = RGBColor(0xd1, 0x49, 0x2e);
const GREY: RGBColor = RGBColor(0x77, 0x77, 0x77);

/// Draws training and validation loss over steps to an SVG file, with a baseline (the baseline loss) as a dashed line.
///
/// # Errors
/// When the file cannot be written. With fewer than two points there is no curve and no file is written.
pub fn draw(path: &Path, rows: &[MetricsRow], baseline: Option<f64>) -> Result<()> {
    let series = |pick: fn(&MetricsRow) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|r| Some((r.step as f64, pick(r)?))).filter(|p| p.1.is_finite()).collect()
    };
    let (trained, validation) = (series(|r| r.loss), series(|r| r.val_loss));
    let all: Vec<(f64, f64)> = trained.iter().chain(&validation).copied().collect();
    if all.len() < 2 {
        return Ok(());
    }
    let last = all.iter().map(|p| p.0).fold(1.0, f64::max);
    let losses = || all.iter().map(|p| p.1).chain(baseline);
    let (least, most) = (losses().fold(f64::INFINITY, f64::min), losses().fold(0.0, f64::max));
    let (low, high) = (least - 0.05 * (most - least), most + 0.05 * (most - least).max(0.01));
    let mut picture = String::new();
    let drawing = Drawing { trained, validation, baseline, last, low, high };
    drawing.onto(&mut picture).map_err(|e| Error::file(path, format!("cannot draw: {e}")))?;
    alluvium_lm::formats::write_atomic(path, |file| file.write_all(picture.as_bytes()))
}

struct Drawing {
    trained: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
    baseline: Option<f64>,
    last: f64,
    low: f64,
    high: f64,
}

impl Drawing {
    fn onto(&self, picture: &mut String) -> std::result::Result<(), Box<dyn std::error::Error + '_>> {
        let root = SVGBackend::with_string(picture, (760, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..self.last, self.low..self.high)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("steps")
            .y_desc("loss (nats per token)")
            .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
            .draw()?;
        chart
            .draw_series(LineSeries::new(self.trained.iter().copied(), TRAINED.stroke_width(2)))?
            .label("training")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], TRAINED.stroke_width(2)));
        chart
            .draw_series(LineSeries::new(self.validation.iter().copied(), VALIDATION.stroke_width(2)).point_size(3))?
            .label("validation")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], VALIDATION.stroke_width(2)));
        if let Some(baseline) = self.baseline {
            let line = [(0.0, baseline), (self.last, baseline)];
            chart
                .draw_series(DashedLineSeries::new(line, 6, 4, GREY.stroke_width(1)))?
                .label("token frequencies")
                .legend(|(x, y)| {
                    plotters::element::DashedPathElement::new([(x, y), (x + 18, y)], 6, 4, GREY.stroke_width(1))
                });
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.9)).border_style(GREY).draw()?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_its_lines_and_without_points_there_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        draw(&path, &[], Some(5.0)).unwrap();
        assert!(!path.exists());
        let record =
            |step, loss| MetricsRow { step, loss: Some(loss), val_loss: Some(loss + 0.1), ..MetricsRow::default() };
        draw(&path, &[record(1, 6.0), record(2, f64::NAN), record(3, 4.0)], Some(5.0)).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("validation") && svg.contains("polyline"), "{svg}");
    }
}
