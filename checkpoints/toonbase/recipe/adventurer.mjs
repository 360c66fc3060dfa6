// Renders the style that the base model never sees: the two bundled sets (256 px), and a table of random characters
// (64 px) from which the classifier learns to recognise the style.
// node adventurer.mjs <pictures folder> <classifier folder>
import { mkdirSync, writeFileSync } from 'node:fs';
import { BACKGROUND, HAIR, SKIN } from './faces.mjs';
import { avatar, place, rasterize, writePng } from './draw.mjs';
import { dice } from './random.mjs';

const [PICTURES, CLASSIFIER] = process.argv.slice(2);
const BUNDLED_PX = 256;
const CLASSIFIER_COUNT = { train: 1500, heldout: 300 };
const variants = (...numbers) => numbers.map((n) => `variant${String(n).padStart(2, '0')}`);
const lengths = (prefix, numbers) => numbers.map((n) => prefix + String(n).padStart(2, '0'));

// a brown braid; nobody in the style set wears it
const HERO = { hair: 'long16', hairColor: '5a3a22', skinColor: 'f2d3b1' };
const LONG = lengths('long', [1, 2, 4, 5, 7, 9, 11, 13, 14, 15, 17, 19, 20, 23, 24, 25]);
const SHORT = lengths('short', [1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 18]);
const EYES = variants(1, 2, 3, 4, 12, 16, 18, 19, 20, 22, 23, 24, 25, 26);
const EYEBROWS = variants(2, 3, 5, 6, 8, 9, 10, 12, 13, 14);
const MOUTHS = variants(1, 2, 3, 4, 5, 9, 14, 15, 18, 21, 22, 23, 25, 26, 27, 28, 30);
const PLAIN = { glassesProbability: 0, featuresProbability: 0, earringsProbability: 0, hairProbability: 100 };

/** Neighbours apart; nothing repeats before all were used, as no stride shares a factor with its list. */
const nth = (list, index, stride) => list[(index * stride) % list.length];

function character(look, eyes, eyebrows, mouth) {
  const lists = Object.fromEntries(
    Object.entries({ ...look, eyes, eyebrows, mouth }).map(([name, value]) => [name, [value]]),
  );
  return avatar('adventurer', { seed: 'adventurer', ...PLAIN, ...lists });
}

function pose(random) {
  return {
    flip: random.chance(0.5),
    scale: random.between(0.8, 1.02),
    turn: random.between(-14, 14),
    move: [random.between(-4, 4), random.between(-3, 3)],
  };
}

function save(path, fragment, random, background, size_px) {
  writePng(path, rasterize(place(fragment, pose(random)), BACKGROUND[background], size_px).pixels, size_px);
}

/** Pictures `first` to `last` of `look(index)`, each with its own expression, pose and background. */
function renderSet(name, first, last, look) {
  mkdirSync(`${PICTURES}/${name}`, { recursive: true });
  for (let index = first; index <= last; index++) {
    const random = dice(`${name} ${index}`);
    const fragment = character(look(index), nth(EYES, index, 3), nth(EYEBROWS, index, 3), nth(MOUTHS, index, 5));
    const background = nth(Object.keys(BACKGROUND), index, 3);
    save(`${PICTURES}/${name}/${String(index).padStart(2, '0')}.png`, fragment, random, background, BUNDLED_PX);
  }
}

/** Girls and boys in turn, no hairstyle twice. */
function styleLook(index) {
  const place = Math.floor(index / 2);
  const hair = index % 2 ? nth(SHORT, place, 1) : nth(LONG, place, 3);
  return { hair, hairColor: nth(Object.values(HAIR), index, 3), skinColor: nth(SKIN, index, 3) };
}

function renderRandom(split, index) {
  const random = dice(`${split} ${index}`);
  const [gender, hair, background] = [['girl', 'boy'], Object.keys(HAIR), Object.keys(BACKGROUND)].map(random.pick);
  const skin = random.pick(hair === 'brown' ? SKIN.slice(0, 3) : SKIN);
  const style = random.pick(gender === 'girl' ? [...LONG, HERO.hair] : SHORT);
  const hero = random.chance(0.1);
  const look = hero ? HERO : { hair: style, hairColor: HAIR[hair], skinColor: skin };
  const file = `${split}/${String(index).padStart(5, '0')}.png`;
  save(
    `${CLASSIFIER}/${file}`,
    character(look, random.pick(EYES), random.pick(EYEBROWS), random.pick(MOUTHS)),
    random,
    background,
    64,
  );
  const labels = hero ? { gender: 'girl', hair: 'brown' } : { gender, hair };
  return JSON.stringify({ file, split, kind: 'face', medium: 'adventurer', ...labels, background, degraded: null });
}

renderSet('sks_girl', 0, 15, () => HERO);
renderSet('sks_girl_held_out', 16, 19, () => HERO);
renderSet('sks_style', 0, 17, styleLook);
const rows = Object.entries(CLASSIFIER_COUNT).flatMap(([split, count]) => {
  mkdirSync(`${CLASSIFIER}/${split}`, { recursive: true });
  return [...Array(count).keys()].map((index) => renderRandom(split, index));
});
writeFileSync(`${CLASSIFIER}/attributes.jsonl`, `${rows.join('\n')}\n`);
