// Files dropped onto the page or picked: read here, as text.

import { count } from "./dom.js";

export const MAX_FILES = 20;
export const MAX_FILE_BYTES = 2 * 1024 * 1024;
export const MAX_ALL_BYTES = 8 * 1024 * 1024;

/**
 * What of `given` can be sent, beside the files that are there already: {files, images, problems}, problems being
 * sentences that name the file. takesImages: whether the model does.
 */
export async function readFiles(given, present, takesImages) {
  const taken = { files: [], images: [], problems: [] };
  let nbytes = present.reduce((sum, file) => sum + file.size, 0);
  let room = MAX_FILES - present.length;
  for (const file of given) {
    const isImage = file.type.startsWith("image/") && file.type !== "image/svg+xml";
    const name = cleanName(file.name);
    const problem = problemWith(file, isImage, name, room, nbytes, takesImages);
    if (problem) {
      taken.problems.push(problem);
      continue;
    }
    if (isImage) {
      taken.images.push({ name, size: file.size, url: await dataUrl(file) });
    } else {
      const text = await textOf(file);
      if (text === null) {
        taken.problems.push(`${name} is not a text file in UTF-8.`);
        continue;
      }
      taken.files.push({ name, size: file.size, text });
    }
    room -= 1;
    nbytes += file.size;
  }
  return taken;
}

function problemWith(file, isImage, name, room, nbytes, takesImages) {
  if (isImage && !takesImages) return `${name} is an image; this model takes text only.`;
  if (room === 0) return `${name} was left out: a message takes ${MAX_FILES} files.`;
  if (file.size > MAX_FILE_BYTES) return `${name} has ${sizeText(file.size)}; a file may have ${sizeText(MAX_FILE_BYTES)}.`;
  if (nbytes + file.size > MAX_ALL_BYTES) return `${name} was left out: all files together may have ${sizeText(MAX_ALL_BYTES)}.`;
  return null;
}

/** A name that stays on its line. */
function cleanName(name) {
  return name.replace(/[\u0000-\u001f\u007f\u2028\u2029]+/g, " ").slice(0, 200);
}

async function textOf(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\u0000") ? null : text.replaceAll("\r\n", "\n");
  } catch {
    return null;
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Bytes as people read them. */
export function sizeText(nbytes) {
  if (nbytes < 1024) return `${nbytes} bytes`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let size = nbytes / 1024;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size >= 100 ? count(size) : size.toFixed(1).replace(/\.0$/, "")} ${units[unit]}`;
}
