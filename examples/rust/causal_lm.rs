//! A float32 causal language modelling loss and its gradient, judged by the golden files of refloss on the spot.
//!
//!     refloss golden write golden --only causal_lm --bounds float32
//!     rustc --edition 2021 -O -o causal_lm examples/rust/causal_lm.rs
//!     ./causal_lm golden
//!
//! Of every causal_lm case whose logits are float32 and whose parameters it knows it computes loss and gradient, and
//! compares them with what is right, element by element, within the bounds of the file. Your own kernel goes where
//! `causal_lm` is. In a crate, safetensors and serde_json read what is read here by hand.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::{env, fs, process};

type Anything<T> = Result<T, Box<dyn Error>>;

// ---------------------------------------------------------------------------------------------------------------------
// The loss. B batch, S sequence, V vocabulary; R = B·S rows of logits.

/// The mean of −log softmax(logits)[target] over the rows whose target counts, or their sum over `items`, and its
/// gradient times the cotangent.
fn causal_lm(logits: &[f32], target: &[i64], ignored: i64, items: Option<f64>, cotangent: f32) -> (f32, Vec<f32>) {
    let counted = target.iter().filter(|&&label| label != ignored).count();
    let normaliser = items.unwrap_or(counted as f64) as f32;
    let classes = logits.len() / target.len().max(1);
    let (mut loss, mut dlogits) = (0.0f32, vec![0.0f32; logits.len()]); // an ignored row's gradient is 0, whatever it holds
    for (row, &label) in target.iter().enumerate().filter(|(_, &label)| label != ignored) {
        let x = &logits[row * classes..(row + 1) * classes];
        let dx = &mut dlogits[row * classes..(row + 1) * classes];
        let maximum = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (derivative, value) in dx.iter_mut().zip(x) {
            *derivative = (value - maximum).exp();
        }
        let sum: f32 = dx.iter().sum();
        loss += sum.ln() - (x[label as usize] - maximum);
        for (class, derivative) in dx.iter_mut().enumerate() {
            let one_hot = if class as i64 == label { 1.0 } else { 0.0 };
            *derivative = (*derivative / sum - one_hot) * (cotangent / normaliser);
        }
    }
    (loss / normaliser, dlogits) // 0/0 = NaN where no row counts
}

/// The target of a token is the label of the next one, and none at the end of a sequence.
fn next_labels(labels: &[i64], length: usize, ignored: i64) -> Vec<i64> {
    let last = |place: usize| (place + 1) % length == 0;
    (0..labels.len()).map(|place| if last(place) { ignored } else { labels[place + 1] }).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// As much JSON as a manifest and a header hold.

enum Json {
    Word(String), // a string, or a number, true, false and null as they are spelt
    List(Vec<Json>),
    Mapping(BTreeMap<String, Json>),
}

impl Json {
    fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Mapping(members) => members.get(key),
            _ => None,
        }
    }
    fn items(&self) -> &[Json] {
        match self {
            Json::List(items) => items,
            _ => &[],
        }
    }
    fn text(&self) -> &str {
        match self {
            Json::Word(text) => text,
            _ => "",
        }
    }
    fn number<T: std::str::FromStr>(&self) -> Option<T> {
        self.text().parse().ok()
    }
}

struct Reader<'a> {
    source: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&mut self) -> u8 {
        while self.source.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.source.get(self.at).copied().unwrap_or(0)
    }
    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == wanted;
        self.at += usize::from(found);
        found
    }
    fn string(&mut self) -> Anything<String> {
        self.take(b'"');
        let start = self.at;
        // Names of cases and tensors have no escapes.
        let length = self.source[start..].iter().position(|&byte| byte == b'"').ok_or("a string has no end")?;
        self.at += length + 1;
        Ok(String::from_utf8(self.source[start..start + length].to_vec())?)
    }
    fn value(&mut self) -> Anything<Json> {
        if self.take(b'{') {
            let mut members = BTreeMap::new();
            while !self.take(b'}') {
                self.peek();
                let key = self.string()?;
                self.take(b':');
                members.insert(key, self.value()?);
                self.take(b',');
            }
            return Ok(Json::Mapping(members));
        }
        if self.take(b'[') {
            let mut items = Vec::new();
            while !self.take(b']') {
                items.push(self.value()?);
                self.take(b',');
            }
            return Ok(Json::List(items));
        }
        if self.peek() == b'"' {
            return Ok(Json::Word(self.string()?));
        }
        let start = self.at;
        while self.source.get(self.at).is_some_and(|byte| !b",]} \n\t\r".contains(byte)) {
            self.at += 1;
        }
        if self.at == start {
            return Err("JSON ends where a value should be".into());
        }
        Ok(Json::Word(String::from_utf8(self.source[start..self.at].to_vec())?))
    }
}

fn json(source: &[u8]) -> Anything<Json> {
    Reader { source, at: 0 }.value()
}

// ---------------------------------------------------------------------------------------------------------------------
// Files: eight bytes for the length of a JSON header, the header, then the values of all tensors, little-endian.

struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn each<const SIZE: usize, T>(&self, read: fn([u8; SIZE]) -> T) -> Vec<T> {
        self.bytes.chunks_exact(SIZE).map(|bytes| read(bytes.try_into().expect("chunks of this size"))).collect()
    }
    fn f32s(&self) -> Vec<f32> {
        self.each(f32::from_le_bytes)
    }
    fn f64s(&self) -> Vec<f64> {
        match self.dtype.as_str() {
            "F64" => self.each(f64::from_le_bytes),
            _ => self.f32s().into_iter().map(f64::from).collect(),
        }
    }
    fn i64s(&self) -> Option<Vec<i64>> {
        match self.dtype.as_str() {
            "I64" => Some(self.each(i64::from_le_bytes)),
            "I32" => Some(self.each(i32::from_le_bytes).into_iter().map(i64::from).collect()),
            "I16" => Some(self.each(i16::from_le_bytes).into_iter().map(i64::from).collect()),
            "U8" => Some(self.bytes.iter().map(|&byte| i64::from(byte)).collect()),
            _ => None,
        }
    }
}

fn tensors(path: &Path) -> Anything<BTreeMap<String, Tensor>> {
    let file = fs::read(path)?;
    let length = u64::from_le_bytes(file[..8].try_into()?) as usize;
    let (header, values) = (json(&file[8..8 + length])?, &file[8 + length..]);
    let Json::Mapping(entries) = header else { return Err("a header is a mapping".into()) };
    let numbers = |entry: &Json, key: &str| -> Vec<usize> {
        entry.get(key).map_or(&[][..], Json::items).iter().filter_map(Json::number).collect()
    };
    Ok(entries
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, entry)| {
            let place = numbers(entry, "data_offsets");
            let dtype = entry.get("dtype").map_or("", Json::text).to_string();
            let tensor = Tensor { dtype, shape: numbers(entry, "shape"), bytes: values[place[0]..place[1]].to_vec() };
            (name.clone(), tensor)
        })
        .collect())
}

// ---------------------------------------------------------------------------------------------------------------------
// The judgement.

/// Whether every element is right, or as near as it has to be.
fn passes(got: &[f32], right: &[f64], bound: &[f64]) -> bool {
    got.len() == right.len()
        && got.iter().zip(right).zip(bound).all(|((&got, &right), &bound)| {
            let got = f64::from(got);
            let same = got == right || (got.is_nan() && right.is_nan());
            same || (got.is_finite() && right.is_finite() && (got - right).abs() <= bound)
        })
}

/// What is wrong with the answers to a case, or None if it is no case for this program.
fn judged(folder: &Path, case: &Json) -> Anything<Option<Vec<String>>> {
    let word = |key: &str| case.get(key).map_or("", Json::text);
    let Some(Json::Mapping(parameters)) = case.get("parameters") else { return Ok(None) };
    let known = ["ignore_index", "num_items_in_batch", "vocab_size"];
    if word("function") != "causal_lm" || !parameters.keys().all(|name| known.contains(&name.as_str())) {
        return Ok(None);
    }
    let file = tensors(&folder.join(word("file")))?;
    let (logits, given) = (&file["input.logits"], file.get("input.shift_labels"));
    let Some(tensor) = given.or(file.get("input.labels")) else { return Ok(None) };
    let cotangent = case.get("grad_output").and_then(Json::number::<f64>);
    let (Some(labels), Some(cotangent), "F32") = (tensor.i64s(), cotangent, logits.dtype.as_str()) else {
        return Ok(None);
    };
    let ignored = parameters.get("ignore_index").and_then(Json::number).unwrap_or(-100);
    let items = parameters.get("num_items_in_batch").and_then(Json::number);
    let length = tensor.shape.last().copied().unwrap_or(1);
    let target = if given.is_some() { labels } else { next_labels(&labels, length, ignored) };
    let (loss, gradient) = causal_lm(&logits.f32s(), &target, ignored, items, cotangent as f32);
    let wrong = [("loss", vec![loss]), ("grad.logits", gradient)].into_iter().filter(|(name, got)| {
        let right = file.get(&format!("exact.{name}")).unwrap_or_else(|| &file[&format!("expected.{name}")]);
        !passes(got, &right.f64s(), &file[&format!("bound.float32.{name}")].f64s())
    });
    Ok(Some(wrong.map(|(name, _)| format!("{} {name}", word("id"))).collect()))
}

fn run(folder: &Path) -> Anything<bool> {
    let manifest = json(&fs::read(folder.join("manifest.json"))?)?;
    if manifest.get("format").and_then(Json::number) != Some(1) {
        return Err("manifest.json has another format than 1".into());
    }
    let (mut cases, mut wrong) = (0, Vec::new());
    for case in manifest.get("cases").map_or(&[][..], Json::items) {
        if let Some(found) = judged(folder, case)? {
            cases += 1;
            wrong.extend(found);
        }
    }
    for each in &wrong {
        println!("{each} is wrong");
    }
    if wrong.is_empty() && cases > 0 {
        println!("{cases} cases are right");
    }
    Ok(wrong.is_empty() && cases > 0)
}

fn main() {
    let Some(folder) = env::args().nth(1) else {
        eprintln!("usage: causal_lm GOLDEN");
        process::exit(2);
    };
    match run(Path::new(&folder)) {
        Ok(right) => process::exit(i32::from(!right)),
        Err(error) => {
            eprintln!("{folder}: {error}");
            process::exit(2);
        }
    }
}
