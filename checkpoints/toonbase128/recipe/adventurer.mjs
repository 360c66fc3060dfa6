// The style that is held back: random characters of it, from which the judge learns to recognise it, and the characters
// that recipes are chosen on. (checkpoints/images holds the shipped one.)
import { avatar, place, rasterize } from './draw.mjs';
import { BACKGROUND, HAIR, SKIN } from './faces.mjs';

const variants = (...numbers) => numbers.map((n) => `variant${String(n).padStart(2, '0')}`);
const lengths = (prefix, numbers) => numbers.map((n) => prefix + String(n).padStart(2, '0'));
const LONG = lengths('long', [1, 2, 4, 5, 7, 9, 11, 13, 14, 15, 16, 17, 19, 20, 23, 24, 25]);
const SHORT = lengths('short', [1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 18]);
const EYES = variants(1, 2, 3, 4, 12, 16, 18, 19, 20, 22, 23, 24, 25, 26);
const EYEBROWS = variants(2, 3, 5, 6, 8, 9, 10, 12, 13, 14);
const MOUTHS = variants(1, 2, 3, 4, 5, 9, 14, 15, 18, 21, 22, 23, 25, 26, 27, 28, 30);
const PLAIN = { glassesProbability: 0, featuresProbability: 0, earringsProbability: 0, hairProbability: 100 };

/** Random numbers => {pixels, labels}. */
export function paintAdventurer(random, size_px) {
  const [gender, hair, background] = [['girl', 'boy'], Object.keys(HAIR), Object.keys(BACKGROUND)].map(random.pick);
  const look = {
    hair: random.pick(gender === 'girl' ? LONG : SHORT),
    hairColor: HAIR[hair],
    skinColor: random.pick(hair === 'brown' ? SKIN.slice(0, 3) : SKIN),
    eyes: random.pick(EYES),
    eyebrows: random.pick(EYEBROWS),
    mouth: random.pick(MOUTHS),
  };
  const lists = Object.fromEntries(Object.entries(look).map(([name, value]) => [name, [value]]));
  const pose = {
    flip: random.chance(0.5),
    scale: random.between(0.8, 1.02),
    turn: random.between(-14, 14),
    move: [random.between(-4, 4), random.between(-3, 3)],
  };
  const fragment = avatar('adventurer', { seed: 'adventurer', ...PLAIN, ...lists });
  const pixels = rasterize(place(fragment, pose), BACKGROUND[background], size_px);
  return { pixels, labels: { kind: 'face', medium: 'adventurer', gender, hair, background, degraded: null } };
}
