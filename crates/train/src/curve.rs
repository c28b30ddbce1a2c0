//! The loss curve as a picture.

use crate::Record;
use alluvium_core::{Error, Result};
use plotters::prelude::*;
use std::path::Path;

pub(crate) const TRAINED: RGBColor = RGBColor(0x2a, 0x6f, 0xbb);
pub(crate) const HELD_OUT: RGBColor = RGBColor(0xd1, 0x49, 0x2e);
pub(crate) const GREY: RGBColor = RGBColor(0x77, 0x77, 0x77);

/// Draws training and held-out loss over steps to an SVG file, with the unigram loss as a dashed line.
///
/// # Errors
/// When it cannot be written. Without two points there is nothing to draw, and no file.
pub fn draw(path: &Path, records: &[Record], unigram: Option<f64>) -> Result<()> {
    let series = |pick: fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
        records.iter().filter_map(|r| Some((r.step as f64, pick(r)?))).filter(|p| p.1.is_finite()).collect()
    };
    let (trained, held_out) = (series(|r| r.loss), series(|r| r.held_out_loss));
    let all: Vec<(f64, f64)> = trained.iter().chain(&held_out).copied().collect();
    if all.len() < 2 {
        return Ok(());
    }
    let last = all.iter().map(|p| p.0).fold(1.0, f64::max);
    let high = all.iter().map(|p| p.1).chain(unigram).fold(0.0, f64::max) * 1.05;
    let mut picture = String::new();
    let drawing = Drawing { trained, held_out, unigram, last, high };
    drawing.onto(&mut picture).map_err(|e| Error::file(path, format!("cannot draw: {e}")))?;
    alluvium_lm::formats::write_atomic(path, |file| file.write_all(picture.as_bytes()))
}

struct Drawing {
    trained: Vec<(f64, f64)>,
    held_out: Vec<(f64, f64)>,
    unigram: Option<f64>,
    last: f64,
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
            .build_cartesian_2d(0.0..self.last, 0.0..self.high)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("steps")
            .y_desc("loss (nats per token)")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        chart
            .draw_series(LineSeries::new(self.trained.iter().copied(), TRAINED.stroke_width(2)))?
            .label("training")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], TRAINED.stroke_width(2)));
        chart
            .draw_series(LineSeries::new(self.held_out.iter().copied(), HELD_OUT.stroke_width(2)).point_size(3))?
            .label("held out")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], HELD_OUT.stroke_width(2)));
        if let Some(unigram) = self.unigram {
            let line = [(0.0, unigram), (self.last, unigram)];
            chart
                .draw_series(DashedLineSeries::new(line, 6, 4, GREY.stroke_width(1)))?
                .label("unigram, held out")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], GREY.stroke_width(1)));
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
    fn a_curve_has_its_lines_and_nothing_is_drawn_from_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        draw(&path, &[], Some(5.0)).unwrap();
        assert!(!path.exists());
        let record =
            |step, loss| Record { step, loss: Some(loss), held_out_loss: Some(loss + 0.1), ..Record::default() };
        draw(&path, &[record(1, 6.0), record(2, f64::NAN), record(3, 4.0)], Some(5.0)).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("held out") && svg.contains("polyline"), "{svg}");
    }
}
