# A block design for the PYNQ-Z2 (XC7Z020) with the IP of package_ip.tcl, and its bitstream.
#
#   vivado -mode batch -source pynq_z2.tcl -tclargs <folder of the IP> <folder to write to> [<MHz>]
#
# Writes twillcore.bit and twillcore.hwh, which PYNQ's Overlay reads. The processing system's GP0
# reaches the registers, the accelerator's m_axi the DDR memory through HP0; one clock, FCLK0. DDR and
# MIO are set up by the boot image of PYNQ, so this design needs no board files.

if {$argc < 2 || $argc > 3} {
    error "usage: -tclargs <folder of the IP> <folder to write to> \[<MHz>\]"
}
lassign $argv ip_folder output mhz
if {$mhz eq ""} {
    set mhz 100
}
set ip_folder [file normalize $ip_folder]
set output [file normalize $output]
if {![file exists [file join $ip_folder component.xml]]} {
    error "$ip_folder has no component.xml: run package_ip.tcl first"
}
set project [file join $output project]

create_project twillcore $project -part xc7z020clg400-1 -force
set_property ip_repo_paths $ip_folder [current_project]
update_ip_catalog
create_bd_design twillcore

set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7 ps]
set_property -dict [list \
    CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $mhz \
    CONFIG.PCW_USE_M_AXI_GP0 1 \
    CONFIG.PCW_USE_S_AXI_HP0 1 \
    CONFIG.PCW_S_AXI_HP0_DATA_WIDTH 64 \
    CONFIG.PCW_USE_FABRIC_INTERRUPT 1 \
    CONFIG.PCW_IRQ_F2P_INTR 1 \
] $ps
apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 \
    -config {make_external "FIXED_IO, DDR"} $ps

create_bd_cell -type ip -vlnv twillcore:ip:twillcore core
set control [create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control]
set memory [create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect memory]
set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1} $control
set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1} $memory
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset

proc join_buses {from to} {
    connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to]
}
proc join_pins {from args} {
    foreach to $args {
        connect_bd_net [get_bd_pins $from] [get_bd_pins $to]
    }
}
join_buses ps/M_AXI_GP0 control/S00_AXI
join_buses control/M00_AXI core/s_axi
join_buses core/m_axi memory/S00_AXI
join_buses memory/M00_AXI ps/S_AXI_HP0
join_pins ps/FCLK_CLK0 core/aclk control/aclk memory/aclk reset/slowest_sync_clk \
    ps/M_AXI_GP0_ACLK ps/S_AXI_HP0_ACLK
join_pins ps/FCLK_RESET0_N reset/ext_reset_in
join_pins reset/peripheral_aresetn core/aresetn control/aresetn memory/aresetn
join_pins core/done ps/IRQ_F2P

assign_bd_address
validate_bd_design
save_bd_design

set design [get_files twillcore.bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top twillcore_wrapper [current_fileset]
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    error "implementation failed: see $project/twillcore.runs/impl_1/runme.log"
}

open_run impl_1
report_utilization -hierarchical -file [file join $output utilization.txt]
report_timing_summary -file [file join $output timing.txt]
set slack [get_property SLACK [get_timing_paths]]
file copy -force $project/twillcore.runs/impl_1/twillcore_wrapper.bit \
    [file join $output twillcore.bit]
file copy -force $project/twillcore.gen/sources_1/bd/twillcore/hw_handoff/twillcore.hwh \
    [file join $output twillcore.hwh]
puts "worst slack at $mhz MHz: $slack ns"
if {$slack < 0} {
    error "too slow for $mhz MHz; give a lower clock as third argument"
}
