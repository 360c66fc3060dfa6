// A captioned picture: labels are drawn first, then painted. Faces, things, and faces with a thing.
import { article, caption } from './captions.mjs';
import { blur, noise, pixelate, warp } from './degrade.mjs';
import { avatar, icon, place, rasterize } from './draw.mjs';
import { BACKGROUND, FACES, HAIR, SKIN } from './faces.mjs';
import { bend, drawLook, inLook } from './looks.mjs';
import { asMedium, headOnly, inkHair, sticker, withGlasses } from './media.mjs';
import { HELD, ICON_SETS, OBJECTS, OBJECT_MEDIA } from './objects.mjs';
import { hash } from './random.mjs';

/** One combination in ten is never trained on; words are hashed, so the split does not depend on the counts. */
const isHeldOut = (...labels) => hash(`held out ${labels.join('|')}`) % 10 === 0;

/** Draws labels until the combination belongs to the split. */
function drawUntil(heldOut, draw, key) {
  for (;;) {
    const labels = draw();
    if (isHeldOut(...key.map((name) => labels[name])) === heldOut) return labels;
  }
}

/** A colour near `hex`, still called by the same name. */
export function jitter(random, hex, amount = 9) {
  const channels = hex
    .match(/../g)
    .map((pair) => Math.round(Math.min(255, Math.max(0, parseInt(pair, 16) + random.between(-amount, amount)))));
  return channels.map((value) => value.toString(16).padStart(2, '0')).join('');
}

const FACE_KEY = ['medium', 'gender', 'hair', 'background'];

function drawFaceLabels(random) {
  const medium = random.pick(Object.keys(FACES));
  const expressions = Object.keys(FACES[medium].expressions);
  return {
    medium,
    gender: random.pick(['girl', 'boy']),
    hair: random.pick(Object.keys(HAIR)),
    background: random.pick(Object.keys(BACKGROUND)),
    glasses: random.chance(0.12),
    expression: random.pick(expressions),
  };
}

/** Pale styles are drawn in ink on paper; half of their faces are tinted. Brown hair vanishes on the darkest skin. */
function skinColour(random, face, hair) {
  if (face.pale && random.chance(0.5)) return 'ffffff';
  return jitter(random, random.pick(hair === 'brown' ? SKIN.slice(0, 3) : SKIN), 6);
}

/** Labels => the portrait. */
function faceFragment(random, { medium, gender, hair, glasses, expression }, look) {
  const face = FACES[medium];
  const chosen = random.pick(face[gender]);
  const colour = jitter(random, HAIR[hair]);
  const options = {
    seed: String(random.next()),
    ...face.fixed,
    ...face.expressions[expression],
    ...(typeof chosen === 'string' ? { [face.hair]: [chosen] } : chosen),
    [face.colour]: [colour],
    [face.skin]: [skinColour(random, face, hair)],
    ...(face.beard && gender === 'boy' && random.chance(0.06) ? face.beard : {}),
    ...(glasses && !face.glasses.draw ? face.glasses : {}),
  };
  if (face.style === 'toonHead' && gender === 'girl') options.clothes = ['dress', 'shirt', 'turtleNeck', 'dress'];
  const fragment = avatar(face.style, options);
  const inked = face.inkedHair ? inkHair(fragment, colour) : fragment;
  const drawn = inLook(glasses && face.glasses.draw ? withGlasses(inked, face.glasses.draw) : inked, look);
  const whole = look.head ? headOnly(drawn, face.neck) : drawn;
  return face.paper ? sticker(whole) : whole;
}

/** A bust stands on the lower edge; a head floats. */
function facePlacement(random, { bust, upright }, { stretch, skew, head }) {
  const flip = random.chance(0.5);
  if (upright) return { flip, stretch, scale: random.between(0.82, 1.02), anchor: [32, 64] };
  if (bust && !head) {
    return { flip, stretch, skew, scale: random.between(0.85, 1.12), turn: random.between(-5, 5), anchor: [32, 68] };
  }
  return {
    flip,
    stretch,
    skew,
    scale: random.between(head ? 0.9 : 0.78, head ? 1.3 : 1.1),
    turn: random.between(-16, 16),
    move: [random.between(-5, 5), random.between(-4, 4) + (head ? 5 : 0)],
  };
}

/** A bust is a head alone in some pictures. */
function drawFaceLook(random, { neck }) {
  return { ...drawLook(random), head: Boolean(neck) && random.chance(0.3) };
}

function paintFace(random, heldOut) {
  const labels = drawUntil(heldOut, () => drawFaceLabels(random), FACE_KEY);
  const face = FACES[labels.medium];
  const look = drawFaceLook(random, face);
  const markup = place(faceFragment(random, labels, look), facePlacement(random, face, look));
  return { kind: 'face', ...labels, markup, look };
}

function objectFragment(random, object, medium) {
  const fragments = ICON_SETS.map((set) => icon(set, OBJECTS[object])).filter(Boolean);
  return asMedium(random.pick(fragments), medium, random.next());
}

function paintObject(random, heldOut) {
  const draw = () => ({
    medium: random.pick(OBJECT_MEDIA),
    background: random.pick(Object.keys(BACKGROUND)),
    // the prompts of the study ask for these two
    object: random.chance(0.04) ? random.pick(['butterfly', 'mountain']) : random.pick(Object.keys(OBJECTS)),
  });
  const labels = drawUntil(heldOut, draw, ['object', 'medium', 'background']);
  const look = drawLook(random);
  const markup = place(objectFragment(random, labels.object, labels.medium), {
    flip: random.chance(0.5),
    stretch: look.stretch,
    scale: random.between(0.62, 0.98),
    turn: random.between(-12, 12),
    move: [random.between(-4, 4), random.between(-4, 4)],
  });
  return { kind: 'object', ...labels, markup, look: { ...look, bend: 0 } };
}

/** A face with a thing: on a mountain, or holding something. */
function paintScene(random, heldOut) {
  const labels = drawUntil(heldOut, () => drawFaceLabels(random), FACE_KEY);
  const climbing = random.chance(0.45);
  const object = climbing ? 'mountain' : random.pick(HELD);
  const side = random.pick([-1, 1]);
  const thing = objectFragment(random, object, OBJECT_MEDIA.includes(labels.medium) ? labels.medium : 'flat icon');
  const look = { ...drawLook(random), head: false };
  const face = faceFragment(random, labels, look);
  const { stretch } = look;
  const flip = side > 0;
  const markup = climbing
    ? place(thing, { flip, scale: random.between(0.92, 1.02), move: [0, 6] }) +
      place(face, {
        flip,
        stretch,
        scale: random.between(0.42, 0.5),
        turn: side * 8,
        move: [side * random.between(8, 14), random.between(-12, -6)],
      })
    : place(face, { flip, stretch, scale: random.between(0.8, 0.95), anchor: [32, 64], move: [-side * 6, 0] }) +
      place(thing, {
        scale: random.between(0.34, 0.42),
        turn: random.between(-10, 10),
        move: [side * random.between(17, 20), random.between(15, 19)],
      });
  const action = climbing ? 'climbing up the mountain' : `holding ${article(object)}`;
  return { kind: 'scene', ...labels, object, markup, action, look: { ...look, bend: 0 } };
}

function spoil(random, pixels, size_px, how) {
  const coarse = random.pick([blur, pixelate, noise]);
  const warped = how === 'coarse' ? pixels : warp(pixels, size_px, random);
  return how === 'warped' ? warped : coarse(warped, size_px, random);
}

/** Random numbers => {pixels, labels with the caption}. */
export function paintCaptioned(random, size_px, heldOut) {
  const roll = random.next();
  const painted = (roll < 0.64 ? paintFace : roll < 0.93 ? paintObject : paintScene)(random, heldOut);
  const degraded = !heldOut && random.chance(0.06) ? random.pick(['warped', 'coarse', 'both']) : null;
  const { markup, action, look, ...labels } = { ...painted, degraded };
  const plain = rasterize(markup, jitter(random, BACKGROUND[labels.background], 4), size_px);
  const bent = bend(plain, size_px, look.bend, random);
  const pixels = degraded ? spoil(random, bent, size_px, degraded) : bent;
  return { pixels, labels: { ...labels, caption: caption(random, { ...labels, action }, heldOut) } };
}
