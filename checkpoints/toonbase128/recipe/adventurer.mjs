// The style that is held back: random characters of it, from which the judge learns to recognise it, and the characters
// that the example's recipe is chosen and checked on. (checkpoints/images holds the shipped one.)
import { avatar, place, rasterize } from './draw.mjs';
import { BACKGROUND, HAIR, SKIN } from './faces.mjs';

const variants = (...numbers) => numbers.map((n) => `variant${String(n).padStart(2, '0')}`);
const lengths = (prefix, numbers) => numbers.map((n) => prefix + String(n).padStart(2, '0'));
const LONG = lengths('long', [1, 2, 4, 5, 7, 9, 11, 13, 14, 15, 16, 17, 19, 20, 23, 24, 25]);
const SHORT = lengths('short', [1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 18]);
const EYES = variants(1, 2, 3, 4, 12, 16, 18, 19, 20, 22, 23, 24, 25, 26);
const WIDE_EYES = variants(1, 2, 3, 23, 24, 25, 26);
const EYEBROWS = variants(2, 3, 5, 6, 8, 9, 10, 12, 13, 14);
/** Checked by eye; `plain` is what deserves no word. */
const EXPRESSIONS = {
  smiling: { eyes: EYES, mouth: variants(5, 22, 23, 25, 26, 27, 28, 30) },
  surprised: { eyes: WIDE_EYES, mouth: variants(3, 18, 21) },
  sad: { eyes: variants(15, 16, 18, 20), mouth: variants(14) },
  plain: { eyes: EYES, mouth: variants(1, 2, 4, 9, 15) },
};
const PLAIN = { glassesProbability: 0, featuresProbability: 0, earringsProbability: 0, hairProbability: 100 };

/** One is to choose on, two are to check on; none is the shipped one. */
export const CHARACTERS = {
  tails: { hair: 'long15', hairColor: '1b1a1f', skinColor: 'e8b48c' },
  ponytail: { hair: 'long19', hairColor: 'f3d25e', skinColor: 'f8d9bd' },
  waves: { hair: 'long24', hairColor: '7b4a22', skinColor: 'e8b48c' },
};

/** Look with one value for each feature => RGBA pixels. */
function paint(random, look, background, size_px) {
  const lists = Object.fromEntries(Object.entries(look).map(([name, value]) => [name, [value]]));
  const pose = {
    flip: random.chance(0.5),
    scale: random.between(0.8, 1.02),
    turn: random.between(-14, 14),
    move: [random.between(-4, 4), random.between(-3, 3)],
  };
  const fragment = avatar('adventurer', { seed: 'adventurer', ...PLAIN, ...lists });
  return rasterize(place(fragment, pose), BACKGROUND[background], size_px);
}

function drawExpression(random) {
  const expression = random.pick(Object.keys(EXPRESSIONS));
  const { eyes, mouth } = EXPRESSIONS[expression];
  return { expression, features: { eyes: random.pick(eyes), mouth: random.pick(mouth), eyebrows: random.pick(EYEBROWS) } };
}

/** Random numbers => {pixels, labels}. */
export function paintAdventurer(random, size_px) {
  const [gender, hair, background] = [['girl', 'boy'], Object.keys(HAIR), Object.keys(BACKGROUND)].map(random.pick);
  const { expression, features } = drawExpression(random);
  const look = {
    hair: random.pick(gender === 'girl' ? LONG : SHORT),
    hairColor: HAIR[hair],
    skinColor: random.pick(hair === 'brown' ? SKIN.slice(0, 3) : SKIN),
    ...features,
  };
  const labels = { kind: 'face', medium: 'adventurer', gender, hair, background, expression, degraded: null };
  return { pixels: paint(random, look, background, size_px), labels };
}

/** Picture `index` of a character: every expression and background in turn. */
export function paintCharacter(random, name, index, size_px) {
  const backgrounds = Object.keys(BACKGROUND);
  const look = { ...CHARACTERS[name], ...drawExpression(random).features };
  return paint(random, look, backgrounds[(index * 3) % backgrounds.length], size_px);
}
