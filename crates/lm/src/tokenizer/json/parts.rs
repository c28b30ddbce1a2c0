//! The parts of a tokenizer around its model, as the file has them, and what each may ask for.

use super::{Checked, IDS};
use serde::Deserialize;
use std::collections::HashMap;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, NFD, NFKC, NFKD, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

/// The longest pattern. Patterns in use have some hundred bytes.
const LONGEST_PATTERN: usize = 4096;

/// The most copies of a part of a pattern that its counts, `{n}`, may ask for: each copy is a part of the program.
const COPIES: usize = 100;

/// The most parts of one kind, one after another.
const PARTS: usize = 32;

/// The largest growth of a text by replacements, as a factor.
const GROWTH: usize = 16;

/// The most that is put before a text, in bytes, or around it, in tokens.
const AROUND: usize = 64;

#[derive(Deserialize)]
#[serde(tag = "type")]
#[allow(clippy::upper_case_acronyms)] // as the file spells them
pub(super) enum Normalizer {
    NFC,
    NFD,
    NFKC,
    NFKD,
    Lowercase,
    Prepend { prepend: String },
    Replace(Replacement),
    Sequence { normalizers: Vec<Normalizer> },
}

impl Normalizer {
    pub(super) fn checked(self) -> Checked<NormalizerWrapper> {
        few(self.parts())?;
        grows(self.growth())?;
        self.build()
    }

    fn parts(&self) -> usize {
        match self {
            Normalizer::Sequence { normalizers } => normalizers.iter().map(Normalizer::parts).sum(),
            _ => 1,
        }
    }

    fn growth(&self) -> usize {
        match self {
            Normalizer::Replace(replacement) => replacement.growth(),
            Normalizer::Sequence { normalizers } => product(normalizers.iter().map(Normalizer::growth)),
            _ => 1,
        }
    }

    fn build(self) -> Checked<NormalizerWrapper> {
        Ok(match self {
            Normalizer::NFC => NormalizerWrapper::NFC(NFC),
            Normalizer::NFD => NormalizerWrapper::NFD(NFD),
            Normalizer::NFKC => NormalizerWrapper::NFKC(NFKC),
            Normalizer::NFKD => NormalizerWrapper::NFKD(NFKD),
            Normalizer::Lowercase => NormalizerWrapper::Lowercase(Lowercase),
            Normalizer::Prepend { prepend } if prepend.len() > AROUND => {
                return Err(format!(
                    "a normalizer puts {} bytes before a text, at most {AROUND} are taken",
                    prepend.len()
                ));
            }
            Normalizer::Prepend { prepend } => NormalizerWrapper::Prepend(Prepend::new(prepend)),
            Normalizer::Replace(replacement) => NormalizerWrapper::Replace(replacement.build()?),
            Normalizer::Sequence { normalizers } => {
                let parts = normalizers.into_iter().map(Normalizer::build).collect::<Checked<_>>()?;
                NormalizerWrapper::Sequence(Normalizers::new(parts))
            }
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Replacement {
    pattern: SplitPattern,
    content: String,
}

impl Replacement {
    /// How much longer it may make a text.
    fn growth(&self) -> usize {
        match &self.pattern {
            SplitPattern::String(from) => self.content.len().div_ceil(from.len().max(1)).max(1),
            // it may match between characters
            SplitPattern::Regex(_) => self.content.len() + 1,
        }
    }

    fn build(self) -> Checked<Replace> {
        bounded(&self.pattern)?;
        let pattern = match self.pattern {
            SplitPattern::String(from) if from.is_empty() => return Err("a part replaces nothing".to_owned()),
            SplitPattern::String(from) => ReplacePattern::String(from),
            SplitPattern::Regex(from) => ReplacePattern::Regex(from),
        };
        Replace::new(pattern, self.content).map_err(|e| e.to_string())
    }
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum PreTokenizer {
    Split {
        pattern: SplitPattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    ByteLevel(Bytes),
    Digits {
        #[serde(default)]
        individual_digits: bool,
    },
    Metaspace(Spaces),
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

impl PreTokenizer {
    pub(super) fn checked(self) -> Checked<PreTokenizerWrapper> {
        few(self.parts())?;
        self.build()
    }

    fn parts(&self) -> usize {
        match self {
            PreTokenizer::Sequence { pretokenizers } => pretokenizers.iter().map(PreTokenizer::parts).sum(),
            _ => 1,
        }
    }

    fn build(self) -> Checked<PreTokenizerWrapper> {
        Ok(match self {
            PreTokenizer::Split { pattern, behavior, invert } => {
                bounded(&pattern)?;
                PreTokenizerWrapper::Split(Split::new(pattern, behavior, invert).map_err(|e| e.to_string())?)
            }
            PreTokenizer::ByteLevel(bytes) => PreTokenizerWrapper::ByteLevel(bytes.build()),
            PreTokenizer::Digits { individual_digits } => PreTokenizerWrapper::Digits(Digits::new(individual_digits)),
            PreTokenizer::Metaspace(spaces) => PreTokenizerWrapper::Metaspace(spaces.build()),
            PreTokenizer::Sequence { pretokenizers } => {
                let parts = pretokenizers.into_iter().map(PreTokenizer::build).collect::<Checked<_>>()?;
                PreTokenizerWrapper::Sequence(PreTokenizers::new(parts))
            }
        })
    }
}

/// The tokens that surround a text. The caller adds them: the crate's own implementation panics on tokens that are
/// missing.
#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum PostProcessor {
    /// Moves offsets, which nobody here asks for.
    ByteLevel {},
    TemplateProcessing {
        single: Vec<Piece>,
        special_tokens: HashMap<String, Special>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Deserialize)]
pub(super) enum Piece {
    Sequence { id: String },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
pub(super) struct Special {
    ids: Vec<u32>,
}

impl PostProcessor {
    /// The ids before and after a text.
    pub(super) fn around(self) -> Checked<[Vec<u32>; 2]> {
        let [before, after] = match self {
            PostProcessor::ByteLevel {} => Default::default(),
            PostProcessor::TemplateProcessing { single, special_tokens } => template(&single, &special_tokens)?,
            PostProcessor::Sequence { processors } => {
                let [mut before, mut after] = <[Vec<u32>; 2]>::default();
                for processor in processors {
                    let [first, last] = processor.around()?;
                    before.splice(0..0, first);
                    after.extend(last);
                }
                [before, after]
            }
        };
        let count = before.len() + after.len();
        match count > AROUND {
            true => Err(format!("its post_processor puts {count} tokens around a text, at most {AROUND} are taken")),
            false => Ok([before, after]),
        }
    }
}

fn template(single: &[Piece], special_tokens: &HashMap<String, Special>) -> Checked<[Vec<u32>; 2]> {
    let (mut sides, mut texts) = (<[Vec<u32>; 2]>::default(), 0);
    for piece in single {
        match piece {
            Piece::Sequence { id } => texts += if id == "A" { 1 } else { 2 },
            Piece::SpecialToken { id } => {
                let special =
                    special_tokens.get(id).ok_or_else(|| format!("its template has no special token `{id}`"))?;
                if let Some(id) = special.ids.iter().find(|id| **id >= IDS) {
                    return Err(format!("its template has id {id}, expected less than {IDS}"));
                }
                sides[texts.min(1)].extend(special.ids.iter().take(AROUND + 1));
            }
        }
        if sides.iter().map(Vec::len).sum::<usize>() > AROUND {
            break;
        }
    }
    let full = sides.iter().map(Vec::len).sum::<usize>() > AROUND;
    if texts != 1 && !full {
        return Err("its template must have the text, sequence A, exactly once".to_owned());
    }
    Ok(sides)
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum Decoder {
    ByteLevel(Bytes),
    Metaspace(Spaces),
    Replace(Replacement),
    ByteFallback,
    Fuse,
    Strip { content: char, start: usize, stop: usize },
    Sequence { decoders: Vec<Decoder> },
}

impl Decoder {
    pub(super) fn checked(self) -> Checked<DecoderWrapper> {
        few(self.parts())?;
        grows(self.growth())?;
        self.build()
    }

    fn parts(&self) -> usize {
        match self {
            Decoder::Sequence { decoders } => decoders.iter().map(Decoder::parts).sum(),
            _ => 1,
        }
    }

    fn growth(&self) -> usize {
        match self {
            Decoder::Replace(replacement) => replacement.growth(),
            Decoder::Sequence { decoders } => product(decoders.iter().map(Decoder::growth)),
            _ => 1,
        }
    }

    fn build(self) -> Checked<DecoderWrapper> {
        Ok(match self {
            Decoder::ByteLevel(bytes) => DecoderWrapper::ByteLevel(bytes.build()),
            Decoder::Metaspace(spaces) => DecoderWrapper::Metaspace(spaces.build()),
            Decoder::Replace(replacement) => DecoderWrapper::Replace(replacement.build()?),
            Decoder::ByteFallback => DecoderWrapper::ByteFallback(ByteFallback::new()),
            Decoder::Fuse => DecoderWrapper::Fuse(Fuse::new()),
            // the crate counts back over the start of a word that is shorter
            Decoder::Strip { stop, .. } if stop > 0 => {
                return Err(format!("its decoder strips {stop} characters of the end of a word; 0 are known"));
            }
            Decoder::Strip { content, start, stop } => DecoderWrapper::Strip(Strip::new(content, start, stop)),
            Decoder::Sequence { decoders } => {
                let parts = decoders.into_iter().map(Decoder::build).collect::<Checked<_>>()?;
                DecoderWrapper::Sequence(Decoders::new(parts))
            }
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Bytes {
    add_prefix_space: bool,
    #[serde(default = "yes")]
    trim_offsets: bool,
    #[serde(default = "yes")]
    use_regex: bool,
}

fn yes() -> bool {
    true
}

impl Bytes {
    fn build(self) -> ByteLevel {
        ByteLevel::new(self.add_prefix_space, self.trim_offsets, self.use_regex)
    }
}

#[derive(Deserialize)]
pub(super) struct Spaces {
    replacement: char,
    prepend_scheme: Option<PrependScheme>,
    // files of before there was a scheme
    add_prefix_space: Option<bool>,
    #[serde(default = "yes")]
    split: bool,
}

impl Spaces {
    fn build(self) -> Metaspace {
        let scheme = match self.add_prefix_space {
            Some(false) => PrependScheme::Never,
            _ => self.prepend_scheme.unwrap_or(PrependScheme::Always),
        };
        Metaspace::new(self.replacement, scheme, self.split)
    }
}

fn product(factors: impl Iterator<Item = usize>) -> usize {
    factors.fold(1, usize::saturating_mul)
}

fn few(parts: usize) -> Checked<()> {
    match parts > PARTS {
        true => Err(format!("it has {parts} parts one after another, at most {PARTS} are taken")),
        false => Ok(()),
    }
}

fn grows(growth: usize) -> Checked<()> {
    match growth > GROWTH {
        true => Err(format!("its replacements may make a text more than {GROWTH} times as long")),
        false => Ok(()),
    }
}

/// Holds a pattern's size against what one can need: how long it is, and how often its counts repeat its parts.
fn bounded(pattern: &SplitPattern) -> Checked<()> {
    let (SplitPattern::String(text) | SplitPattern::Regex(text)) = pattern;
    if text.len() > LONGEST_PATTERN {
        return Err(format!("a pattern has {} bytes, at most {LONGEST_PATTERN} are taken", text.len()));
    }
    let counts = text.split('{').skip(1).filter_map(|rest| {
        let inside = rest.split_once('}')?.0;
        let numbers = inside.split(',').map(str::trim).filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        numbers.filter(|n| !n.is_empty()).map(|n| n.parse().unwrap_or(usize::MAX)).max()
    });
    // in one another they multiply
    match product(counts.map(|n| n.max(1))) > COPIES {
        true => Err(format!("the counts of a pattern multiply to more than {COPIES}")),
        false => Ok(()),
    }
}
