// How a drawing may look beyond its style: outlines, palette, proportions. No word of a caption depends on it, so the
// model learns that a medium has many looks, and that hair, expression and background are directions of their own.
import { boxSize, filtered } from './draw.mjs';

const INK = ['000000', '1b1a1f', '222222', '2b2440', '3a2a20', '14304a', '4a1f2a'];

/** What varies, each in some pictures only. */
export function drawLook(random) {
  return {
    outline: random.chance(0.4) ? { width: random.between(0.006, 0.024), ink: random.pick(INK) } : null,
    silhouette: random.chance(0.15) ? { width: random.between(0.008, 0.03), ink: random.pick(INK) } : null,
    saturation: random.chance(0.15) ? random.between(0.6, 1.3) : 1,
    stretch: random.chance(0.5) ? [random.between(0.86, 1.1), random.between(0.86, 1.1)] : [1, 1],
    skew: random.chance(0.2) ? random.between(-7, 7) : 0,
    bend: random.chance(0.35) ? random.between(0.01, 0.045) : 0,
  };
}

/** Strokes around every shape that names none of its own; wider strokes where shapes have hairlines. */
export function outlined({ body, box }, { width, ink }) {
  const stroke = `stroke="#${ink}" stroke-width="${width * boxSize({ box })}" stroke-linejoin="round"`;
  return { box, body: `<g ${stroke}>${body}</g>` };
}

/** A line around the whole. */
export function rimmed(fragment, { width, ink }) {
  const grow = `<feMorphology in="SourceAlpha" operator="dilate" radius="${width * boxSize(fragment)}"/>`;
  const paint = `<feFlood flood-color="#${ink}" result="ink"/><feComposite in="ink" in2="fat" operator="in"/>`;
  return filtered(
    fragment,
    `${grow}<feComponentTransfer result="fat"><feFuncA type="linear" slope="1"/></feComponentTransfer>${paint}` +
      '<feMerge><feMergeNode/><feMergeNode in="SourceGraphic"/></feMerge>',
  );
}

export const faded = (fragment, saturation) =>
  filtered(fragment, `<feColorMatrix type="saturate" values="${saturation}"/>`);

/** Fragment => the same in this look; proportions are for `place` and `bend`. */
export function inLook(fragment, { outline, silhouette, saturation }) {
  let looked = outline ? outlined(fragment, outline) : fragment;
  if (saturation !== 1) looked = faded(looked, saturation);
  return silhouette ? rimmed(looked, silhouette) : looked;
}

/** Other proportions: RGBA pixels moved smoothly by up to `strength` of the side, read between pixels. */
export function bend(pixels, size, strength, random) {
  if (!strength) return pixels;
  const [a, b, c, d] = [0, 0, 0, 0].map(() => random.between(0, 6.3));
  const [fx, fy] = [random.between(2.5, 5), random.between(2.5, 5)];
  const reach = strength * size;
  const out = Buffer.alloc(pixels.length);
  const clamp = (value) => Math.min(size - 1.001, Math.max(0, value));
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const sx = clamp(x + reach * (Math.sin((fy * y) / size + a) + Math.sin((fx * x) / size + b)) * 0.5);
      const sy = clamp(y + reach * (Math.sin((fx * x) / size + c) + Math.sin((fy * y) / size + d)) * 0.5);
      const [left, top] = [Math.floor(sx), Math.floor(sy)];
      const [u, v] = [sx - left, sy - top];
      const at = 4 * (top * size + left);
      const to = 4 * (y * size + x);
      for (let k = 0; k < 3; k++) {
        const upper = pixels[at + k] * (1 - u) + pixels[at + 4 + k] * u;
        const lower = pixels[at + 4 * size + k] * (1 - u) + pixels[at + 4 * size + 4 + k] * u;
        out[to + k] = upper * (1 - v) + lower * v + 0.5;
      }
    }
  }
  return out;
}
