//! Pictures: heat maps as PNG or SVG (kuva) and in the terminal.

use crate::backend::params::BLOCK;
use crate::index::HostIndex;
use crate::{Error, Result};
use kuva::backend::{raster::RasterBackend, svg::SvgBackend};
use kuva::plot::{ColorMap, Heatmap, LinePlot, ScatterPlot};
use kuva::render::{
    figure::Figure,
    layout::Layout,
    layout::TickFormat,
    plots::Plot,
    render::{Scene, render_multiple},
};
use std::path::Path;
use std::sync::Arc;

/// A table of values in 0..=1, red where 0 and green where 1: the form of the paper's needle figure.
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// Above the map.
    pub title: String,
    /// Below the columns.
    pub x_label: String,
    /// Beside the rows.
    pub y_label: String,
    /// Labels, left to right.
    pub columns: Vec<String>,
    /// Labels, top to bottom.
    pub rows: Vec<String>,
    /// One list per row, one value per column.
    pub values: Vec<Vec<f64>>,
}

/// Red, yellow, green at 0, 0.5, 1: told apart by lightness too, and close to the colours of the published figures.
const STOPS: [[f64; 3]; 3] = [[215.0, 48.0, 39.0], [254.0, 224.0, 139.0], [26.0, 152.0, 80.0]];

/// Size of a map's title.
const TITLE: u32 = 14;

/// The colour of a value in 0..=1.
fn colour(value: f64) -> [u8; 3] {
    let at = value.clamp(0.0, 1.0) * 2.0;
    let low = (at as usize).min(1);
    let t = at - low as f64;
    std::array::from_fn(|c| (STOPS[low][c] * (1.0 - t) + STOPS[low + 1][c] * t).round() as u8)
}

/// Text on a coloured ground, or plain where colours are off.
pub fn painted(text: &str, value: f64, colours: bool) -> String {
    let [r, g, b] = colour(value);
    match colours {
        true => format!("\x1b[48;2;{r};{g};{b}m\x1b[38;2;0;0;0m{text}\x1b[0m"),
        false => text.to_string(),
    }
}

impl HeatMap {
    /// For a terminal: a cell shows its value in percent on its colour, or the value alone where colours are off.
    pub fn terminal(&self, colours: bool) -> String {
        let margin = self.rows.iter().map(|r| r.chars().count()).max().unwrap_or(0).max(self.y_label.chars().count());
        let width = self.columns.iter().map(|c| c.chars().count()).max().unwrap_or(0).max(4) + 1;
        let mut out = format!("{}\n{:>margin$} ", self.title, self.y_label);
        for column in &self.columns {
            out += &format!("{column:>width$}");
        }
        out += &format!("  {}\n", self.x_label);
        for (row, values) in self.rows.iter().zip(&self.values) {
            out += &format!("{row:>margin$} ");
            for &value in values {
                if value.is_nan() {
                    out += &format!("{:>width$}", "-");
                    continue;
                }
                out += &painted(&format!("{:>width$}", format!("{:.0}", value * 100.0)), value, colours);
            }
            out.push('\n');
        }
        out
    }

    /// kuva scales colours to the least and greatest value of the data; a picture of right and wrong needs the same
    /// colours whatever was found, so the colour map undoes that.
    fn plot(&self) -> (Vec<Plot>, Layout) {
        let all = || self.values.iter().flatten().copied();
        let (least, greatest) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let map = ColorMap::Custom(Arc::new(move |t| {
            // What was not measured is grey.
            let [r, g, b] = if t.is_nan() { [221; 3] } else { colour(least + t * (greatest - least)) };
            format!("#{r:02x}{g:02x}{b:02x}")
        }));
        let rows: Vec<_> = self.values.iter().rev().cloned().collect();
        let plots = vec![Plot::Heatmap(Heatmap::new().with_data(rows).with_color_map(map).with_values())];
        let mut layout = Layout::auto_from_plots(&plots)
            .with_title(&self.title)
            .with_title_size(TITLE)
            .with_x_label(&self.x_label)
            .with_y_label(&self.y_label)
            .with_x_categories(self.columns.clone())
            .with_y_categories(self.rows.iter().rev().cloned().collect());
        layout.show_colorbar = false;
        (plots, layout)
    }
}

/// Draws maps side by side, two in a row, into a `.png` or `.svg` file.
///
/// Fails on any other extension, and where a map is empty or ragged.
pub fn save(path: &Path, title: &str, maps: &[HeatMap]) -> Result<()> {
    for map in maps {
        let (rows, columns) = (map.rows.len(), map.columns.len());
        if rows == 0 || columns == 0 || map.values.len() != rows || map.values.iter().any(|v| v.len() != columns) {
            return Err(Error::invalid(format!("plot: expected {rows} x {columns} values, found {:?}", map.values)));
        }
    }
    if maps.is_empty() {
        return Err(Error::invalid(format!("plot {}: expected maps, found none", path.display())));
    }
    let across = maps.len().min(2);
    let down = maps.len().div_ceil(across);
    let (plots, layouts): (Vec<_>, Vec<_>) = maps.iter().map(HeatMap::plot).unzip();
    let columns = maps.iter().map(|m| m.columns.len()).max().unwrap_or(1);
    let rows = maps.iter().map(|m| m.rows.len()).max().unwrap_or(1);
    // A title is centred on the cells and may be longer than they are wide: 0.62 is the width of a character of the font.
    let longest = maps.iter().map(|m| m.title.chars().count()).max().unwrap_or(0);
    let column = maps.iter().flat_map(|m| &m.columns).map(|c| c.chars().count()).max().unwrap_or(0);
    let width = (170.0 + (8.0 * column as f64 + 16.0).max(62.0) * columns as f64)
        .max(120.0 + 0.62 * f64::from(TITLE) * longest as f64)
        .max((60.0 + 15.0 * title.chars().count() as f64) / across as f64);
    let scene = Figure::new(down, across)
        .with_title(title)
        .with_plots(plots)
        .with_layouts(layouts)
        .with_cell_size(width, 130.0 + 34.0 * rows as f64)
        .render();
    write_scene(path, &scene)
}

/// Lines over a common axis: a value by the length of the prompt, one line a mode.
#[derive(Clone, Debug)]
pub struct Curves {
    /// Above the picture.
    pub title: String,
    /// Below it.
    pub x_label: String,
    /// Beside it.
    pub y_label: String,
    /// Name and points of each line.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Whether the value's axis is logarithmic; that of the lengths always is.
    pub log_y: bool,
}

/// Colours of lines that are told apart by most eyes (Okabe and Ito).
const LINES: [&str; 8] = ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];

/// Draws curves into a `.png` or `.svg` file. Points that a logarithmic axis cannot hold are left out.
///
/// # Errors
/// [`Error::Invalid`] for another ending, [`Error::Io`].
pub fn save_curves(path: &Path, curves: &Curves) -> Result<()> {
    let holds = |&(x, y): &(f64, f64)| x > 0.0 && y.is_finite() && (!curves.log_y || y > 0.0);
    let lines = curves.lines.iter().map(|(name, points)| (name, points.iter().copied().filter(holds).collect()));
    let lines: Vec<(&String, Vec<(f64, f64)>)> = lines.filter(|(_, points): &(_, Vec<_>)| !points.is_empty()).collect();
    if lines.is_empty() {
        return Err(Error::invalid(format!("plot {}: expected lines with points, found none", path.display())));
    }
    // Lengths double from one to the next, so the axis is that of their binary logarithms, with whole ones at its ends.
    let lengths = || lines.iter().flat_map(|(_, points)| points).map(|(x, _)| x.log2());
    let (first, last) = (lengths().fold(f64::INFINITY, f64::min).floor(), lengths().fold(0.0, f64::max).ceil());
    let (first, last) = if first < last { (first, last) } else { (first - 1.0, last + 1.0) };
    let plots: Vec<Plot> =
        lines.iter().zip(LINES.iter().cycle()).flat_map(|(line, colour)| line_plots(line, colour)).collect();
    let mut layout = Layout::auto_from_plots(&plots)
        .with_title(&curves.title)
        .with_title_size(TITLE)
        .with_x_label(&curves.x_label)
        .with_y_label(&curves.y_label)
        .with_x_axis_min(first)
        .with_x_axis_max(last)
        .with_x_tick_step(((last - first) / 12.0).ceil())
        .with_x_tick_format(TickFormat::Custom(Arc::new(|x| tokens(x.exp2()))));
    if curves.log_y {
        layout = layout.with_log_y().with_y_tick_format(TickFormat::Custom(Arc::new(decimal)));
    }
    write_scene(path, &render_multiple(plots, layout))
}

/// A line over the binary logarithm of its lengths, and a dot at each of its points: one alone would not be seen.
fn line_plots((name, points): &(&String, Vec<(f64, f64)>), colour: &str) -> [Plot; 2] {
    let points: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.log2(), *y)).collect();
    let dots = ScatterPlot::new().with_data(points.clone()).with_color(colour).with_size(3.5);
    let line = LinePlot::new().with_data(points).with_color(colour).with_stroke_width(2.0).with_legend(name.as_str());
    [Plot::Line(line), Plot::Scatter(dots)]
}

/// A number of tokens on an axis: 512, 4K, 1M.
fn tokens(x: f64) -> String {
    match x.round() as u64 {
        n if n >= 1 << 20 => format!("{}M", n >> 20),
        n if n >= 1 << 10 => format!("{}K", n >> 10),
        n => n.to_string(),
    }
}

/// A number as people write it: 0.05 and not 5e-2.
fn decimal(x: f64) -> String {
    let text = format!("{x:.5}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// That a picture can be written there, to be asked before long work.
///
/// # Errors
/// [`Error::Invalid`] for another ending; [`Error::File`] and [`Error::Io`] for a directory that is missing or cannot
/// be written to.
pub fn check_place(path: &Path) -> Result<()> {
    match path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase().as_str() {
        "png" | "svg" => crate::files::check_place(path),
        other => Err(Error::invalid(format!("plot {}: expected .png or .svg, found {other:?}", path.display()))),
    }
}

/// A scene in the format that the path's ending names.
fn write_scene(path: &Path, scene: &Scene) -> Result<()> {
    let format = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let failed = |what: String| Error::invalid(format!("plot {}: {what}", path.display()));
    let bytes = match format.as_str() {
        "svg" => SvgBackend.render_scene(scene).into_bytes(),
        "png" => RasterBackend::new().with_scale(2.0).render_scene(scene).map_err(|e| failed(e.to_string()))?,
        other => return Err(failed(format!("expected .png or .svg, found {other:?}"))),
    };
    crate::files::write(path, &bytes)
}

/// Draws a head's attention, and beside it what an index computes of it in blue over the same, into a `.png` or `.svg` file:
/// the form of the paper's figures. `computed` is of [`index_map`]; both have the same side.
///
/// # Errors
/// [`Error::Invalid`] for another ending, [`Error::Io`].
pub fn save_head(path: &Path, attention: &[Vec<f64>], computed: &[Vec<Option<f64>>]) -> Result<()> {
    let side = attention.len();
    // Darker by powers of two, 2^-14 of a row and less is white.
    let grey = |mass: f64| if mass > 0.0 { ((14.0 + mass.log2()) / 14.0).clamp(0.0, 1.0) } else { 0.0 };
    let pixel = |r: usize, c: usize, overlay: bool| -> [u8; 3] {
        let Some(share) = computed[r][c] else { return [255; 3] };
        let dark = 255.0 * (1.0 - grey(attention[r][c]));
        let over = if overlay { share.sqrt() * 0.55 } else { 0.0 };
        [40.0, 90.0, 230.0].map(|blue| (dark * (1.0 - over) + blue * over) as u8)
    };
    let panel = |overlay: bool| (0..side).map(move |r| (0..side).map(|c| pixel(r, c, overlay)).collect::<Vec<_>>());
    let panels = [panel(false).collect::<Vec<_>>(), panel(true).collect()];
    let (cell, gap) = (4, 16);
    let width = 2 * side * cell + gap;
    match path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase().as_str() {
        "png" => {
            let mut pixels = Vec::with_capacity(3 * width * side * cell);
            for y in 0..side * cell {
                for (i, rows) in panels.iter().enumerate() {
                    rows[y / cell].iter().for_each(|p| (0..cell).for_each(|_| pixels.extend_from_slice(p)));
                    if i == 0 {
                        pixels.extend(std::iter::repeat_n(255, 3 * gap));
                    }
                }
            }
            let image = png(width, side * cell, &pixels)
                .map_err(|e| Error::invalid(format!("plot {}: {e}", path.display())))?;
            crate::files::write(path, &image)
        }
        "svg" => {
            let height = side * cell;
            let mut out = format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" shape-rendering=\"crispEdges\">\n"
            );
            for (i, rows) in panels.iter().enumerate() {
                for (r, row) in rows.iter().enumerate() {
                    // Runs of one colour are one rectangle.
                    let mut c = 0;
                    while c < side {
                        let run = row[c..].iter().take_while(|p| **p == row[c]).count();
                        let [red, green, blue] = row[c];
                        if row[c] != [255; 3] {
                            out += &format!(
                                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{cell}\" fill=\"#{red:02x}{green:02x}{blue:02x}\"/>\n",
                                i * (side * cell + gap) + c * cell,
                                r * cell,
                                run * cell
                            );
                        }
                        c += run;
                    }
                }
            }
            crate::files::write(path, (out + "</svg>\n").as_bytes())
        }
        other => Err(Error::invalid(format!("plot {}: expected .png or .svg, found {other:?}", path.display()))),
    }
}

/// An RGB image as PNG.
fn png(width: usize, height: usize, pixels: &[u8]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(out)
}

/// Which part of a head's attention map an index computes: `[side][side]` cells, queries downwards, keys to the right,
/// each the share of its causal pairs; `None` where a cell has none (above the diagonal).
///
/// Made from a few queries per row of cells, so that it costs the same at 4K and at 1M tokens.
pub fn index_map(index: &HostIndex, head: usize, side: usize) -> Vec<Vec<Option<f64>>> {
    const SAMPLES: usize = 8;
    let edge = |c: usize| c * index.kv_len / side;
    let row_of_cells = |r: usize| {
        let (first, last) = (r * index.q_len / side, ((r + 1) * index.q_len / side).max(r * index.q_len / side + 1));
        let (mut computed, mut causal) = (vec![0usize; side], vec![0usize; side]);
        for sample in 0..SAMPLES {
            let query = (first + (last - first) * (2 * sample + 1) / (2 * SAMPLES)).min(index.q_len - 1);
            let position = index.q_start + query;
            let keys = index.row(head, query / BLOCK).keys(position);
            for c in 0..side {
                let cell = edge(c)..edge(c + 1).min(position + 1);
                causal[c] += cell.len();
                computed[c] += keys.iter().map(|k| (k.start.max(cell.start)..k.end.min(cell.end)).len()).sum::<usize>();
            }
        }
        let share = |(computed, causal): (&usize, &usize)| (*causal > 0).then(|| *computed as f64 / *causal as f64);
        computed.iter().zip(&causal).map(share).collect()
    };
    (0..side).map(row_of_cells).collect()
}

/// A map of [`index_map`] as lines of text: two rows of cells to a line, in colours or in shades.
pub fn terminal_map(map: &[Vec<Option<f64>>], colours: bool) -> Vec<String> {
    // A single column is a thin line: the square root lets it be seen beside whole blocks.
    let tone = |cell: Option<f64>| cell.map(|share| share.clamp(0.0, 1.0).sqrt());
    let rgb = |tone: f64| [30.0 + 225.0 * tone, 34.0 + 170.0 * tone, 60.0 + 20.0 * tone].map(|c| c as u8);
    map.chunks(2)
        .map(|pair| {
            let lower = pair.last().map_or(&[][..], Vec::as_slice);
            let cells = pair[0].iter().zip(lower).map(|(up, down)| match (tone(*up), tone(*down), colours) {
                (None, None, _) => " ".to_string(),
                (up, down, false) => {
                    let mean = (up.unwrap_or(0.0) + down.unwrap_or(0.0)) / 2.0;
                    ['.', '░', '▒', '▓', '█'][(mean * 4.0).round() as usize].to_string()
                }
                (None, Some(down), true) => {
                    let [r, g, b] = rgb(down);
                    format!("\x1b[38;2;{r};{g};{b}m▄\x1b[0m")
                }
                (Some(up), down, true) => {
                    let ([r, g, b], [r2, g2, b2]) = (rgb(up), rgb(down.unwrap_or(0.0)));
                    format!("\x1b[38;2;{r};{g};{b}m\x1b[48;2;{r2};{g2};{b2}m▀\x1b[0m")
                }
            });
            cells.collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> HeatMap {
        HeatMap {
            title: "dense".into(),
            x_label: "tokens".into(),
            y_label: "depth".into(),
            columns: vec!["8192".into(), "16384".into()],
            rows: vec!["0 %".into(), "50 %".into(), "100 %".into()],
            values: vec![vec![1.0, 0.0], vec![0.5, 1.0], vec![1.0, 1.0]],
        }
    }

    #[test]
    fn colours_run_from_red_to_green() {
        assert_eq!(colour(-1.0), [215, 48, 39]);
        assert_eq!(colour(0.5), [254, 224, 139]);
        assert_eq!(colour(2.0), [26, 152, 80]);
    }

    #[test]
    fn the_terminal_map_holds_every_value_and_label() {
        let text = map().terminal(false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "dense");
        assert_eq!(lines[1], "depth   8192 16384  tokens");
        assert_eq!(lines[3], " 50 %     50   100");
        assert!(map().terminal(true).contains("\x1b[48;2;215;48;39m"));
    }

    #[test]
    fn an_index_map_shows_sink_window_and_the_empty_half() {
        // One head, 256 tokens: the first block, and each row block's own.
        let mut index = HostIndex::empty(1, 256, 256, 0);
        for row in 0..4 {
            if row > 0 {
                index.ranges.push([0, 64]);
            }
            index.ranges.push([64 * row, 64 * (row + 1)]);
            index.range_ptr.push(index.ranges.len() as i64);
            index.column_ptr.push(0);
        }
        let map = index_map(&index, 0, 4);
        let one = Some(1.0);
        assert_eq!(map[0], [one, None, None, None]);
        assert_eq!(map[2], [one, Some(0.0), one, None]);
        assert_eq!(terminal_map(&map, false), ["█▒  ", "█.▒▒"]);
        assert!(terminal_map(&map, true)[0].contains('▄'));
    }

    #[test]
    fn heads_are_drawn_as_png_and_svg() {
        let dir = tempfile::tempdir().unwrap();
        let attention = vec![vec![1.0, 0.0], vec![0.5, 0.5]];
        let computed = vec![vec![Some(1.0), None], vec![Some(0.0), Some(1.0)]];
        let path = |name: &str| dir.path().join(name);
        save_head(&path("a.png"), &attention, &computed).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(path("a.png")).unwrap());
        let mut image = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; image.output_buffer_size().unwrap()];
        let info = image.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (32, 8, png::ColorType::Rgb));
        // The one cell without pairs is white, the first one black on the left and blue over it on the right.
        let at = |x: usize, y: usize| &pixels[3 * (32 * y + x)..][..3];
        assert_eq!((at(4, 0), at(0, 0)), (&[255; 3][..], &[0; 3][..]));
        assert!(at(24, 0)[2] > at(24, 0)[0] && at(24, 0)[2] > 100, "{:?}", at(24, 0));
        save_head(&path("a.svg"), &attention, &computed).unwrap();
        let svg = std::fs::read_to_string(path("a.svg")).unwrap();
        assert_eq!(svg.matches("<rect").count(), 5, "runs of one colour are joined: {svg}");
        assert!(save_head(&path("a.gif"), &attention, &computed).is_err());
    }

    #[test]
    fn pictures_are_written_and_bad_requests_refused() {
        let dir = tempfile::tempdir().unwrap();
        let svg = dir.path().join("a.svg");
        save(&svg, "needle", &[map(), map(), map()]).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        // Wrong is red although the least value of another map may be higher.
        assert!(text.contains("#d73027") && text.contains("16384"), "{text}");
        save(&dir.path().join("a.png"), "needle", &[map()]).unwrap();
        assert_eq!(&std::fs::read(dir.path().join("a.png")).unwrap()[1..4], b"PNG");
        assert!(save(&dir.path().join("a.gif"), "needle", &[map()]).unwrap_err().to_string().contains("\"gif\""));
        let lines =
            vec![("dense".to_string(), vec![(1000.0, 1.0), (100_000.0, 25.0)]), ("nothing".into(), vec![(1.0, 0.0)])];
        let labels = ["latency", "tokens", "seconds"].map(String::from);
        let [title, x_label, y_label] = labels;
        let curves = Curves { title, x_label, y_label, lines, log_y: true };
        save_curves(&svg, &curves).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.contains("dense") && text.contains("64K") && text.contains("seconds"), "{text}");
        assert!(text.contains(">0.1<") || text.contains(">10<"), "plain numbers: {text}");
        assert!(!text.contains("nothing"), "a line without a point that the axis holds");
        assert!(save_curves(&dir.path().join("a.gif"), &curves).is_err());
        assert!(save_curves(&svg, &Curves { lines: Vec::new(), ..curves }).is_err());
        let ragged = HeatMap { values: vec![vec![1.0]], ..map() };
        assert!(save(&svg, "needle", &[ragged]).is_err());
    }
}
