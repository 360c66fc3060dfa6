// Ways to spoil a picture, so that negative prompts have something to work on: RGBA pixels (128 px) => RGBA pixels.

const at = (size, x, y) =>
  4 * (Math.min(size - 1, Math.max(0, Math.round(y))) * size + Math.min(size - 1, Math.max(0, Math.round(x))));

/** Fills a copy; `source` gives the offset to read for each place. */
function resample(pixels, size, source) {
  const out = Buffer.from(pixels);
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++) pixels.copy(out, at(size, x, y), source(x, y), source(x, y) + 4);
  return out;
}

/** Features leave their places. */
export function warp(pixels, size, random) {
  const [a, b, c, d] = [0, 0, 0, 0].map(() => random.between(0, 6.3));
  const [strength, wave] = [random.between(8, 15), random.between(6.4, 11)];
  return resample(pixels, size, (x, y) =>
    at(
      size,
      x + strength * (Math.sin(y / wave + a) + 0.5 * Math.sin(x / 8 + b)),
      y + strength * (Math.sin(x / wave + c) + 0.5 * Math.sin(y / 8 + d)),
    ),
  );
}

export function pixelate(pixels, size, random) {
  const block = random.pick([8, 10, 13, 16]);
  return resample(pixels, size, (x, y) =>
    at(size, Math.floor(x / block) * block + block / 2, Math.floor(y / block) * block + block / 2),
  );
}

export function blur(pixels, size, random) {
  const radius = random.pick([4, 6, 8]);
  const pass = (input, dx, dy) => {
    const out = Buffer.from(input);
    for (let y = 0; y < size; y++)
      for (let x = 0; x < size; x++)
        for (let channel = 0; channel < 3; channel++) {
          let sum = 0;
          for (let k = -radius; k <= radius; k++) sum += input[at(size, x + k * dx, y + k * dy) + channel];
          out[at(size, x, y) + channel] = sum / (2 * radius + 1);
        }
    return out;
  };
  return pass(pass(pixels, 1, 0), 0, 1);
}

export function noise(pixels, size, random) {
  const strength = random.between(90, 160);
  return Buffer.from(
    pixels.map((value) => Math.min(255, Math.max(0, value + strength * (random.next() + random.next() - 1)))),
  );
}
