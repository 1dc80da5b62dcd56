// Behaviour of three ECP5 blocks as this project uses them, for simulation of netlists. The vendor's
// models are not free, and Yosys has black boxes. Registers without reset; initial contents 0.

module MULT18X18D (
    input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input CLK0, CLK1, CLK2, CLK3, CE0, CE1, CE2, CE3, RST0, RST1, RST2, RST3,
    input C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
        P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
    parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0";
    parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0";
    parameter REG_INPUTC_CLK = "NONE", REG_INPUTC_CE = "CE0", REG_INPUTC_RST = "RST0";
    parameter REG_PIPELINE_CLK = "NONE", REG_PIPELINE_CE = "CE0", REG_PIPELINE_RST = "RST0";
    parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0";
    parameter CLK0_DIV = "ENABLED", CLK1_DIV = "ENABLED", CLK2_DIV = "ENABLED", CLK3_DIV = "ENABLED";
    parameter HIGHSPEED_CLK = "NONE", GSR = "ENABLED", CAS_MATCH_REG = "FALSE";
    parameter SOURCEB_MODE = "B_SHIFT", MULT_BYPASS = "DISABLED", RESETMODE = "SYNC";

    wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1,
        A0};
    wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1,
        B0};
    reg [17:0] a_register, b_register;
    reg [35:0] output_register;
    wire [17:0] a_used = REG_INPUTA_CLK == "NONE" ? a : a_register;
    wire [17:0] b_used = REG_INPUTB_CLK == "NONE" ? b : b_register;
    wire signed [37:0] product = $signed({SIGNEDA & a_used[17], a_used})
        * $signed({SIGNEDB & b_used[17], b_used});
    always @(posedge CLK0) if (CE0) begin
        a_register <= a;
        b_register <= b;
        output_register <= product[35:0];
    end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
        P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} =
        REG_OUTPUT_CLK == "NONE" ? product[35:0] : output_register;
    initial if (REG_PIPELINE_CLK != "NONE") $fatal(1, "pipeline registers have no model");
endmodule

// Two bits of a carry chain: what of a LUT with C = D = 0 is 1 is the carry where the LUT is 0.
module CCU2C (
    input CIN, A0, B0, C0, D0, A1, B1, C1, D1,
    output S0, S1, COUT
);
    parameter [15:0] INIT0 = 16'd0, INIT1 = 16'd0;
    parameter INJECT1_0 = "YES", INJECT1_1 = "YES";

    wire propagate0 = INIT0[{D0, C0, B0, A0}], propagate1 = INIT1[{D1, C1, B1, A1}];
    wire carry = propagate0 ? CIN : INIT0[{2'd0, B0, A0}];
    assign S0 = propagate0 ^ CIN;
    assign S1 = propagate1 ^ carry;
    assign COUT = propagate1 ? carry : INIT1[{2'd0, B1, A1}];
    initial if (INJECT1_0 != "NO" || INJECT1_1 != "NO") $fatal(1, "injection has no model");
endmodule

module DP16KD (
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
        DIA4, DIA3, DIA2, DIA1, DIA0,
    input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1,
        ADA0,
    input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
        DOA4, DOA3, DOA2, DOA1, DOA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
        DIB4, DIB3, DIB2, DIB1, DIB0,
    input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1,
        ADB0,
    input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
        DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, REGMODE_A = "NOREG", REGMODE_B = "NOREG";
    parameter RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC", GSR = "ENABLED", WID = 0;
    parameter CSDECODE_A = "0b000", CSDECODE_B = "0b000", INIT_DATA = "STATIC";
    parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL", CLKAMUX = "CLKA", CLKBMUX = "CLKB";
    parameter [319:0] INITVAL_00 = 320'd0;
    parameter [319:0] INITVAL_01 = 320'd0;
    parameter [319:0] INITVAL_02 = 320'd0;
    parameter [319:0] INITVAL_03 = 320'd0;
    parameter [319:0] INITVAL_04 = 320'd0;
    parameter [319:0] INITVAL_05 = 320'd0;
    parameter [319:0] INITVAL_06 = 320'd0;
    parameter [319:0] INITVAL_07 = 320'd0;
    parameter [319:0] INITVAL_08 = 320'd0;
    parameter [319:0] INITVAL_09 = 320'd0;
    parameter [319:0] INITVAL_0A = 320'd0;
    parameter [319:0] INITVAL_0B = 320'd0;
    parameter [319:0] INITVAL_0C = 320'd0;
    parameter [319:0] INITVAL_0D = 320'd0;
    parameter [319:0] INITVAL_0E = 320'd0;
    parameter [319:0] INITVAL_0F = 320'd0;
    parameter [319:0] INITVAL_10 = 320'd0;
    parameter [319:0] INITVAL_11 = 320'd0;
    parameter [319:0] INITVAL_12 = 320'd0;
    parameter [319:0] INITVAL_13 = 320'd0;
    parameter [319:0] INITVAL_14 = 320'd0;
    parameter [319:0] INITVAL_15 = 320'd0;
    parameter [319:0] INITVAL_16 = 320'd0;
    parameter [319:0] INITVAL_17 = 320'd0;
    parameter [319:0] INITVAL_18 = 320'd0;
    parameter [319:0] INITVAL_19 = 320'd0;
    parameter [319:0] INITVAL_1A = 320'd0;
    parameter [319:0] INITVAL_1B = 320'd0;
    parameter [319:0] INITVAL_1C = 320'd0;
    parameter [319:0] INITVAL_1D = 320'd0;
    parameter [319:0] INITVAL_1E = 320'd0;
    parameter [319:0] INITVAL_1F = 320'd0;
    parameter [319:0] INITVAL_20 = 320'd0;
    parameter [319:0] INITVAL_21 = 320'd0;
    parameter [319:0] INITVAL_22 = 320'd0;
    parameter [319:0] INITVAL_23 = 320'd0;
    parameter [319:0] INITVAL_24 = 320'd0;
    parameter [319:0] INITVAL_25 = 320'd0;
    parameter [319:0] INITVAL_26 = 320'd0;
    parameter [319:0] INITVAL_27 = 320'd0;
    parameter [319:0] INITVAL_28 = 320'd0;
    parameter [319:0] INITVAL_29 = 320'd0;
    parameter [319:0] INITVAL_2A = 320'd0;
    parameter [319:0] INITVAL_2B = 320'd0;
    parameter [319:0] INITVAL_2C = 320'd0;
    parameter [319:0] INITVAL_2D = 320'd0;
    parameter [319:0] INITVAL_2E = 320'd0;
    parameter [319:0] INITVAL_2F = 320'd0;
    parameter [319:0] INITVAL_30 = 320'd0;
    parameter [319:0] INITVAL_31 = 320'd0;
    parameter [319:0] INITVAL_32 = 320'd0;
    parameter [319:0] INITVAL_33 = 320'd0;
    parameter [319:0] INITVAL_34 = 320'd0;
    parameter [319:0] INITVAL_35 = 320'd0;
    parameter [319:0] INITVAL_36 = 320'd0;
    parameter [319:0] INITVAL_37 = 320'd0;
    parameter [319:0] INITVAL_38 = 320'd0;
    parameter [319:0] INITVAL_39 = 320'd0;
    parameter [319:0] INITVAL_3A = 320'd0;
    parameter [319:0] INITVAL_3B = 320'd0;
    parameter [319:0] INITVAL_3C = 320'd0;
    parameter [319:0] INITVAL_3D = 320'd0;
    parameter [319:0] INITVAL_3E = 320'd0;
    parameter [319:0] INITVAL_3F = 320'd0;

    // A word of 36 bits is two of 18, and parity bits count as data: address in units of 9 bits.
    reg [8:0] memory [0:2047];
    integer i;
    initial for (i = 0; i < 2048; i = i + 1) memory[i] = 9'd0;

    wire [13:0] address_a = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4,
        ADA3, ADA2, ADA1, ADA0};
    wire [13:0] address_b = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4,
        ADB3, ADB2, ADB1, ADB0};
    wire [17:0] data_a = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8,
        DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
    wire [17:0] data_b = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8,
        DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
    wire [35:0] both = {data_b, data_a};
    reg [35:0] read_a, read_b;
    wire [10:0] unit_a = DATA_WIDTH_A == 36 ? {address_a[13:5], 2'b0}
        : DATA_WIDTH_A == 18 ? {address_a[13:4], 1'b0} : address_a[13:3];
    wire [10:0] unit_b = DATA_WIDTH_B == 36 ? {address_b[13:5], 2'b0}
        : DATA_WIDTH_B == 18 ? {address_b[13:4], 1'b0} : address_b[13:3];
    integer n;
    always @(posedge CLKA) if (CEA) begin
        if (DATA_WIDTH_A >= 18) begin
            for (n = 0; n < DATA_WIDTH_A / 9; n = n + 1)
                if (WEA && address_a[n]) memory[unit_a + n[10:0]] <= both[9 * n +: 9];
        end else if (WEA)
            write_narrow(unit_a, DATA_WIDTH_A, address_a[2:0], data_a[8:0]);
        if (!WEA) begin
            for (n = 0; n < 4; n = n + 1) read_a[9 * n +: 9] <= memory[unit_a + n[10:0]];
            if (DATA_WIDTH_A < 9) read_a[8:0] <= memory[unit_a] >> address_a[2:0];
        end
    end
    integer k;
    always @(posedge CLKB) if (CEB) begin
        if (DATA_WIDTH_B == 18) begin
            for (k = 0; k < 2; k = k + 1)
                if (WEB && address_b[k]) memory[unit_b + k[10:0]] <= data_b[9 * k +: 9];
        end else if (WEB)
            write_narrow(unit_b, DATA_WIDTH_B, address_b[2:0], data_b[8:0]);
        if (!WEB) begin
            for (k = 0; k < 4; k = k + 1) read_b[9 * k +: 9] <= memory[unit_b + k[10:0]];
            if (DATA_WIDTH_B < 9) read_b[8:0] <= memory[unit_b] >> address_b[2:0];
        end
    end
    // A word of 1, 2 or 4 bits: the low bits of its address say where in 8 of the unit's it is.
    task write_narrow(input [10:0] unit, input integer width, input [2:0] low, input [8:0] value);
        if (width == 9) memory[unit] <= value;
        else memory[unit] <= (memory[unit] & ~(((9'd1 << width) - 9'd1) << low))
            | ((value & ((9'd1 << width) - 9'd1)) << low);
    endtask

    // Registers behind it, which the other enable alone loads.
    reg [35:0] out_a, out_b;
    always @(posedge CLKA) if (OCEA) out_a <= read_a;
    always @(posedge CLKB) if (OCEB) out_b <= read_b;
    wire [17:0] port_a = REGMODE_A == "OUTREG" ? out_a[17:0] : read_a[17:0];
    wire [35:0] port_b = REGMODE_B == "OUTREG" ? out_b : read_b;
    initial if (DATA_WIDTH_B == 36 && REGMODE_A != REGMODE_B)
        $fatal(1, "half a word in registers has no model");

    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6,
        DOA5, DOA4, DOA3, DOA2, DOA1, DOA0} = DATA_WIDTH_B == 36 ? port_b[17:0] : port_a;
    // what is read in 36 bits leaves by both ports
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6,
        DOB5, DOB4, DOB3, DOB2, DOB1, DOB0} = DATA_WIDTH_B == 36 ? port_b[35:18] : port_b[17:0];
endmodule
