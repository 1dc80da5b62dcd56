// Stands for the ECP5's PLL in simulation: the clock passes, and is stable from the 4th cycle on.
module EHXPLLL #(
  parameter CLKFB_DIV = 1,
  parameter CLKI_DIV = 1,
  parameter CLKOP_CPHASE = 0,
  parameter CLKOP_DIV = 1,
  parameter CLKOP_ENABLE = "",
  parameter CLKOP_FPHASE = 0,
  parameter DPHASE_SOURCE = "",
  parameter FEEDBK_PATH = "",
  parameter INTFB_WAKE = "",
  parameter OUTDIVIDER_MUXA = "",
  parameter OUTDIVIDER_MUXB = "",
  parameter OUTDIVIDER_MUXC = "",
  parameter OUTDIVIDER_MUXD = "",
  parameter PLLRST_ENA = "",
  parameter STDBY_ENABLE = ""
) (
  input CLKI, CLKFB, RST, STDBY, ENCLKOP, PLLWAKESYNC,
  input PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG,
  output CLKOP, LOCK
);
  reg [1:0] count = 0;
  always @(posedge CLKI) if (!LOCK) count <= count + 1'b1;
  assign LOCK = &count;
  assign CLKOP = CLKI;
endmodule
