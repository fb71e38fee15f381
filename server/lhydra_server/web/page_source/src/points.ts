// Points of a plane, drawn by WebGL: one draw call for all of them, and a grid to find the nearest one.
import * as twgl from "twgl.js";

const VERTEX = `
attribute vec2 place;
attribute float value;
uniform vec2 middle;
uniform vec2 scale;
uniform float size;
uniform float only;
uniform vec3 colours[16];
varying vec4 colour;
void main() {
  gl_Position = vec4((place - middle) * scale, 0.0, 1.0);
  bool faint = only >= 0.0 && value != only;
  gl_PointSize = size;
  int at = value < 15.0 ? int(value) : 15;
  vec3 found = colours[15];
  for (int i = 0; i < 16; i++) if (i == at) found = colours[i];
  colour = vec4(found, faint ? 0.06 : 0.72);
}`;
const FRAGMENT = `
precision mediump float;
varying vec4 colour;
void main() {
  float far = length(gl_PointCoord - 0.5);
  float inside = smoothstep(0.5, 0.4, far);
  if (inside <= 0.0) discard;
  gl_FragColor = vec4(colour.rgb, colour.a * inside);
}`;
const CELLS = 128; // of the grid, a side
const NEAR_PX = 14;

export class Points {
  only = -1;
  onDraw: () => void = () => {};
  private readonly gl: WebGLRenderingContext;
  private readonly program: twgl.ProgramInfo;
  private readonly buffers: twgl.BufferInfo;
  private readonly colours: Float32Array;
  private readonly starts: Uint32Array;
  private readonly members: Uint32Array;
  private readonly watch: ResizeObserver;
  private middle: [number, number] = [0.5, 0.5];
  private zoomed = 1;
  private waiting = 0;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly places: Uint16Array,
    values: Uint8Array,
    colours: string[],
    other: string,
  ) {
    const gl = canvas.getContext("webgl", { antialias: false, alpha: true, premultipliedAlpha: false });
    if (!gl) throw new Error("no context");
    this.gl = gl;
    this.program = twgl.createProgramInfo(gl, [VERTEX, FRAGMENT]);
    this.buffers = twgl.createBufferInfoFromArrays(gl, {
      place: { numComponents: 2, data: places, normalize: true },
      value: { numComponents: 1, data: values, normalize: false },
    });
    const sixteen = [...colours.slice(0, 15), ...Array<string>(15).fill(other)].slice(0, 15).concat(other);
    this.colours = Float32Array.from(sixteen.flatMap((one) => [1, 3, 5].map((at) => parseInt(one.slice(at, at + 2), 16) / 255)));
    [this.starts, this.members] = grid(places);
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(canvas);
  }

  close(): void {
    this.watch.disconnect();
    window.cancelAnimationFrame(this.waiting);
  }

  draw(): void {
    window.cancelAnimationFrame(this.waiting);
    this.waiting = window.requestAnimationFrame(() => {
      const { gl } = this;
      twgl.resizeCanvasToDisplaySize(this.canvas, window.devicePixelRatio);
      gl.viewport(0, 0, gl.canvas.width, gl.canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.enable(gl.BLEND);
      gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.useProgram(this.program.program);
      twgl.setBuffersAndAttributes(gl, this.program, this.buffers);
      const side = this.side();
      const dense = this.places.length / 2 > 20_000;
      twgl.setUniforms(this.program, {
        middle: this.middle,
        scale: [(2 * side) / this.canvas.clientWidth, (2 * side) / this.canvas.clientHeight],
        size: Math.min(14, (dense ? 2.4 : 5) * this.zoomed ** 0.4) * window.devicePixelRatio,
        only: this.only,
        colours: this.colours,
      });
      twgl.drawBufferInfo(gl, this.buffers, gl.POINTS);
      this.onDraw();
    });
  }

  /** Pixels of the page that the whole plane is wide. */
  private side(): number {
    return Math.min(this.canvas.clientWidth, this.canvas.clientHeight) * 0.94 * this.zoomed;
  }

  toScreen(index: number): [number, number] {
    const x = (this.places[2 * index] ?? 0) / 65535 - this.middle[0];
    const y = (this.places[2 * index + 1] ?? 0) / 65535 - this.middle[1];
    return [this.canvas.clientWidth / 2 + x * this.side(), this.canvas.clientHeight / 2 - y * this.side()];
  }

  private toPlane(x: number, y: number): [number, number] {
    const side = this.side();
    return [this.middle[0] + (x - this.canvas.clientWidth / 2) / side, this.middle[1] - (y - this.canvas.clientHeight / 2) / side];
  }

  pan(dx: number, dy: number): void {
    const side = this.side();
    this.middle = [this.middle[0] - dx / side, this.middle[1] + dy / side];
    this.draw();
  }

  zoom(by: number, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2): void {
    const before = this.toPlane(x, y);
    this.zoomed = Math.min(400, Math.max(0.5, this.zoomed * by));
    const after = this.toPlane(x, y);
    this.middle = [this.middle[0] + before[0] - after[0], this.middle[1] + before[1] - after[1]];
    this.draw();
  }

  reset(): void {
    this.middle = [0.5, 0.5];
    this.zoomed = 1;
    this.draw();
  }

  /** The point nearest to a place on the screen, -1 where none is near. */
  nearest(x: number, y: number): number {
    const [px, py] = this.toPlane(x, y);
    const reach = NEAR_PX / this.side();
    const cell = (value: number) => Math.min(CELLS - 1, Math.max(0, Math.floor(value * CELLS)));
    let found = -1;
    let least = reach * reach;
    for (let row = cell(py - reach); row <= cell(py + reach); row++)
      for (let column = cell(px - reach); column <= cell(px + reach); column++) {
        const at = row * CELLS + column;
        for (let i = this.starts[at] ?? 0; i < (this.starts[at + 1] ?? 0); i++) {
          const index = this.members[i] ?? 0;
          const dx = (this.places[2 * index] ?? 0) / 65535 - px;
          const dy = (this.places[2 * index + 1] ?? 0) / 65535 - py;
          const far = dx * dx + dy * dy;
          if (far < least) {
            least = far;
            found = index;
          }
        }
      }
    return found;
  }
}

// Points by cell: where each cell begins in the list of members.
function grid(places: Uint16Array): [Uint32Array, Uint32Array] {
  const n = places.length / 2;
  const of = new Uint32Array(n);
  const starts = new Uint32Array(CELLS * CELLS + 1);
  for (let i = 0; i < n; i++) {
    const cell = ((places[2 * i + 1] ?? 0) >> 9) * CELLS + ((places[2 * i] ?? 0) >> 9);
    of[i] = cell;
    starts[cell + 1] = (starts[cell + 1] ?? 0) + 1;
  }
  for (let cell = 0; cell < CELLS * CELLS; cell++) starts[cell + 1] = (starts[cell + 1] ?? 0) + (starts[cell] ?? 0);
  const next = starts.slice();
  const members = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    const cell = of[i] ?? 0;
    members[next[cell] ?? 0] = i;
    next[cell] = (next[cell] ?? 0) + 1;
  }
  return [starts, members];
}
